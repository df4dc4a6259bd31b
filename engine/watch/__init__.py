"""What is seen while a run works: metrics, progress, the time ledger."""
