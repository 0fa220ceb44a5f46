"""Benchmarks: what softspec costs beside other ways to the same thing."""
