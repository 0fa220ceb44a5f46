"""The transformers backend: all members stacked in one model, as in training, and what they share computed once."""
