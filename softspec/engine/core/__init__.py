"""In vLLM's engine-core process: the K rows of a group are scheduled in the same step or not at all."""
