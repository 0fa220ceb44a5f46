"""Layers below all adapters: computed once for a group instead of K times."""
