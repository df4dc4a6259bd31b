"""Prompts: from any file to the tables that the loop starts from."""
