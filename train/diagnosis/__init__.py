"""Diagnosis: whether members can specialise on some data, whether they did, and what to change if not."""
