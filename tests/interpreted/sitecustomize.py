"""Tells vLLM that Triton runs here: its interpreter stands in for the CPU backend that the public Triton lacks.

Python imports this at its start, in those processes only that have this folder in their PYTHONPATH.
"""

from types import SimpleNamespace

from triton.backends import backends

backends["cpu"] = SimpleNamespace(compiler=None, driver=SimpleNamespace(is_active=lambda: True))
