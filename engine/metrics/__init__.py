"""What is measured while a run works: metrics, progress, times."""
