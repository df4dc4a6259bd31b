"""Pure functions: preferences, losses, log-probabilities, schedules, comparisons."""
