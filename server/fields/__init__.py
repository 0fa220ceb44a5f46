"""Which part of a structured answer is doubtful: the leaves of its JSON with the numbers of their tokens."""
