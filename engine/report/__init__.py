"""What a run reports: figures from its tables, the table of iterations, the page."""
