"""Rows of files become tokenised examples on disk."""
