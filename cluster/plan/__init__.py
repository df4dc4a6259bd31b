"""What a run needs, worked out before anything starts. Needs neither Ray nor torch."""
