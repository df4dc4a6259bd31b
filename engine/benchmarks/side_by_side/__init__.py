"""Answers of several policies beside each other."""
