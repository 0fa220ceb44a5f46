"""A run as one page to mail: curves of training, what the scores are worth, who disagrees about what."""
