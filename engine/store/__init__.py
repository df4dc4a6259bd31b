"""The run folder: what is durable, who owns it, what it holds."""
