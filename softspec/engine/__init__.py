"""The only place that touches vLLM's internals: one file per extension point, pinned and checked at start-up.

Floors, each of which may import those before it: `wire` and `trace`; `requirements` and `options`; then `front`, `core`
and `worker`, one for each kind of vLLM's processes, which never import one another; then `start`.
"""
