"""The self-play loop, its stages, and the interfaces of the roles."""
