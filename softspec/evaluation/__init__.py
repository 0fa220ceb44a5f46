"""What an ensemble's numbers are worth on data with a truth: rows, their scores on disk, metrics with intervals."""
