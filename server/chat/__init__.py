"""Chat and text completions with their uncertainty, streamed or not."""
