"""The OpenAI-compatible HTTP server over the ensemble engine; imported as softspec.server, never by softspec.train.

Floors, each of which may import those before it: `policy`, `ops`, `chat`, `ensembles`, and `plugin.py`, which puts them
together.
"""
