"""How an engine starts, and what it must be before an ensemble may be served on it."""
