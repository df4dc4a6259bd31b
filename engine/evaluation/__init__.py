"""How good is a policy, a scorer or a judge: statistics on comparisons."""
