"""What needs to be done once on a machine is done by one of its processes: here, making tokens of the data."""

import json
from pathlib import Path

import pytest

from tests.support.tiny_training import chat_rows, write_config, write_rows
from tests.support.torchrun import torchrun

pytestmark = pytest.mark.slow

READ = """
import json, os, sys
from pathlib import Path

opened = []
sys.addaudithook(lambda event, found: opened.append(str(found[0])) if event == "open" else None)

from softspec.errors import DataError
from softspec.train.config import load_config
from softspec.train.processes import leave_others
from softspec.train.run import read_data

config = load_config(Path(sys.argv[1]))
try:
    units = [unit.completion_ids for part in read_data(config) for unit in part]
    error = None
except DataError as raised:
    units, error = [], str(raised)
seen = {"reads": sum(name.endswith("/train.jsonl") for name in opened), "units": units, "error": error}
(config.output_dir.parent / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(seen))
leave_others()
"""


def read_in(folder: Path, nodes: int) -> list[dict[str, object]]:
    """What each of two processes a node read itself, and which units it has in the end."""
    script = folder / "read.py"
    script.write_text(READ)
    ended = torchrun(str(script), str(folder / "config.yaml"), nodes=nodes)
    assert [each.returncode for each in ended] == [0] * nodes, ended
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2 * nodes)]


def test_one_process_of_a_node_tokenises_and_all_have_the_units(tmp_path: Path) -> None:
    write_rows(tmp_path / "held_out.jsonl", chat_rows()[:5])
    write_config(tmp_path, eval_file="held_out.jsonl")
    before = {path.name for path in tmp_path.iterdir()}

    seen = read_in(tmp_path, nodes=2)

    assert [bool(each["reads"]) for each in seen] == [True, False, True, False]
    assert len(seen[0]["units"]) == len(chat_rows()) + 5  # type: ignore[arg-type]
    assert all(each["units"] == seen[0]["units"] for each in seen)
    left = {path.name for path in tmp_path.iterdir()} - before
    assert left == {"read.py", *(f"rank-{rank}.json" for rank in range(4))}


def test_a_bad_row_is_the_error_of_every_process(tmp_path: Path) -> None:
    """Or one would wait for what never comes."""
    write_config(tmp_path)
    write_rows(tmp_path / "train.jsonl", [*chat_rows(), {"prompt": "What?", "completion": ""}])

    seen = read_in(tmp_path, nodes=1)

    assert "train.jsonl:13: empty completion" in str(seen[0]["error"])
    assert seen[1]["error"] == seen[0]["error"]
