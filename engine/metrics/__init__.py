"""What is measured while a run works: metrics, progress, time."""
