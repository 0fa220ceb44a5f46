"""Answers that exist already, scored as if the ensemble had written them."""
