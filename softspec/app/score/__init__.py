"""Scores for a file of answers, computed in this process: no server."""
