"""The roles: generator, scorers, learner. Plain classes that know nothing of Ray or of each other."""
