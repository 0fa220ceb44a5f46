"""How an engine starts: its flags and environment, vLLM's server, or an engine without HTTP."""
