"""What an ensemble needs of a machine, by arithmetic: memory, time per token, time to the first token."""
