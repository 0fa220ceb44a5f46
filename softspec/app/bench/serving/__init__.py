"""The serving benchmark: an ensemble beside other ways to its answers."""
