"""The vLLM backend: the engine that serves, without HTTP, for whoever has no event loop."""
