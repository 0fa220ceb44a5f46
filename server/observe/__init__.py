"""What became of every HTTP request: an account of each, a line in the log and a span of a trace."""
