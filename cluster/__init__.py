"""Where the roles run: commands, the plan, and the Ray runtime."""
