"""MT-Bench (arXiv 2306.05685)."""
