"""The scorers: from K answers per prompt to pair logits."""
