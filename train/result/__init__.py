"""What a run leaves: held-out scores and an ensemble directory."""
