"""The engine with vLLM's own LoRA products on a CPU instead of ours: parity does not depend on them."""

from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from softspec.maths.sampling import SamplingSpec
from softspec.reference import ReferenceEnsemble
from tests.support.parity import TOLERANCE, largest_difference, prompt

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.soak,
    pytest.mark.filterwarnings("ignore::FutureWarning:vllm.*", "ignore::DeprecationWarning:xgrammar.*"),
]


def test_engine_equals_the_reference_with_vllms_own_lora(
    tiny_base: Path, tiny_ensembles: dict[str, Path]
) -> None:
    """Adapters that act everywhere: vLLM gives a CPU's row without an adapter the last slot's."""
    from vllm import SamplingParams

    from softspec.engine.front.translation import record
    from softspec.engine.trace import ChoiceTrace
    from tests.stress.engine import InProcessEngine

    names = ("always-4", "always-2")
    with patch("softspec.engine.worker.cpu_lora.use_cpu_lora") as ours:
        engine = InProcessEngine(
            tiny_base,
            [tiny_ensembles[name] for name in names],
            max_model_len=128,
            num_gpu_blocks_override=64,
            max_num_batched_tokens=128,
            max_num_seqs=16,
        )
    assert ours.called
    asked = [(name, length, temp) for name in names for length in (5, 33, 70) for temp in (0.0, 1.0)]
    params = [SamplingParams(temperature=temp, seed=3, max_tokens=12, ignore_eos=True) for *_, temp in asked]
    for number, (name, length, _) in enumerate(asked):
        engine.submit(str(number), name, prompt(length), params[number])
    done: dict[str, CompletionOutput] = {}
    while engine.scheduler.has_unfinished_requests():
        done |= {output.request_id: output.outputs[0] for output in engine.step() if output.finished}

    for number, (name, length, temperature) in enumerate(asked):
        reference = ReferenceEnsemble.load(tiny_base, tiny_ensembles[name])
        expected = reference.decode(prompt(length), SamplingSpec(temperature=temperature, seed=3), 12)
        choice = ChoiceTrace()
        record(done[str(number)], params[number], engine.specs[name], choice)
        assert largest_difference(choice.tokens, expected) < TOLERANCE, (name, length, temperature)
    engine.close()
