"""How good a policy, a scorer or a judge is: statistics of comparisons."""
