"""IFEval (arXiv 2311.07911)."""
