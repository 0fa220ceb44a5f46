"""How a metric becomes a probability of being right, and thresholds with a guarantee: fitted on rows with a truth."""
