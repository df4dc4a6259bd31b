"""One run as a folder: playing it, what every folder has, whole models out of it."""
