"""AlpacaEval (arXiv 2404.04475)."""
