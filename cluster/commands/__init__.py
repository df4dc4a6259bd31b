"""What a person runs: training, the kumite command, exports."""
