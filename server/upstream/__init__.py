"""Asking other OpenAI-compatible servers: what a routed request is sent to, and what may go wrong with it."""
