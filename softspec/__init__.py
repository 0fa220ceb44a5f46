"""softspec: alpha-Renyi LoRA ensembles, trained and served as one model that knows when it does not know.

Pure mathematics (`renyi`, `mixture`, `uncertainty`, `sampling`), the artefact (`manifest`) and the vLLM integration
(`engine`). `train` and `server` build on this package and never on each other.
"""

__version__ = "0.1.0"
