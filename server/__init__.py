"""The OpenAI-compatible HTTP server over the ensemble engine. Imports `softspec`, never `train`."""
