"""What an ensemble has to beat: simpler models of the same data, steps and seeds, and their scores of the same rows."""
