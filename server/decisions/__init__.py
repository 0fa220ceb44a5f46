"""Decisions: questions with known options, answered by the exact distribution over them."""
