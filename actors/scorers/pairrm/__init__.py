"""PairRM (arXiv 2306.02561), reimplemented for transformers 5: model, inputs, checkpoints, training."""
