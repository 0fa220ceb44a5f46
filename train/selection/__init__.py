"""Choosing alpha, the number of members, and rank and layers where asked: `softspec select`."""
