"""What `kumite eval` does: which policies, how they are measured, the tables of their numbers."""
