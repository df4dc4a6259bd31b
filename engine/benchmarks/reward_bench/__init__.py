"""RewardBench 1 and 2 (arXiv 2403.13787, 2506.01937): a benchmark of scorers."""
