"""A plugin of vLLM's that is not softspec's: as any distribution brings one, it says that it was loaded.

In: a folder. Out: the folder with a module and the metadata by which Python finds it, and what a process must see.
"""

import os
from pathlib import Path

_LOADED = "loaded"
_MODULE = f"""
import os
from pathlib import Path


def load() -> None:
    Path(__file__).with_name("{_LOADED}").write_text(str(os.getpid()))
"""


def other_plugin(folder: Path) -> dict[str, str]:
    """Make the plugin; returns the variables of a process that has it installed."""
    metadata = folder / "other-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[vllm.general_plugins]\nother = other_vllm_plugin:load\n")
    (folder / "other_vllm_plugin.py").write_text(_MODULE)
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *([before] if before else [])])}


def was_loaded(folder: Path) -> bool:
    """Whether vLLM has loaded the plugin of this folder."""
    return (folder / _LOADED).exists()
