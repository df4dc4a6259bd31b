"""The configuration: its keys, how files and command lines become one, and what mistakes are told."""
