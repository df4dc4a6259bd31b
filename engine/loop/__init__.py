"""The loop, and what it asks of the roles."""
