"""A running server under load: its times, and what it decided."""
