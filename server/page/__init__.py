"""The page at `/`: a chat with the ensembles, and decisions, that show who doubts what."""
