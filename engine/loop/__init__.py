"""The self-play loop, its stages, and what it asks of the roles."""
