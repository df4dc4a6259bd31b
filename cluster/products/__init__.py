"""What is handed on: preference sets and models with their cards, and their upload."""
