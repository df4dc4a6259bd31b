"""LLM judges: what is asked, how replies are read, and who serves the model."""
