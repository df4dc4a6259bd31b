"""Data sets: from any file to the PROMPTS table."""
