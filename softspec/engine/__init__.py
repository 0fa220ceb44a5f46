"""Everything that touches vLLM's internals: one file per extension point, pinned and checked at start-up."""
