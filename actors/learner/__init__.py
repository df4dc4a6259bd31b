"""The learner: one rank of a DeepSpeed group, and what a version of the policy is on disk."""
