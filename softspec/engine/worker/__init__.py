"""In vLLM's worker processes: the K rows of a group become one mixture, one token and its numbers."""
