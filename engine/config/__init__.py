"""The configuration: its keys, how files and command lines are merged, and its error messages."""
