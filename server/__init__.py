"""The OpenAI-compatible HTTP server over the ensemble engine; imported as softspec.server, never by softspec.train."""
