"""The roles: generator, scorers, learner. Plain classes that import neither Ray nor each other."""
