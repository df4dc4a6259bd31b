"""What is told at the end: figures from the tables, the table of iterations, the page."""
