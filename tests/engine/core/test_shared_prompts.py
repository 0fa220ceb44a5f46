"""What members share is computed once, by whoever comes first; and an answer does not depend on who else was there."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from softspec.maths.answer import TokenUncertainty
from softspec.maths.sampling import SamplingSpec
from softspec.reference import ReferenceEnsemble
from tests.support.parity import largest_difference

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.core.sched.output import SchedulerOutput

    from tests.stress.engine import InProcessEngine
    from tests.support.engine_harness import EngineHarness

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::FutureWarning:vllm.*", "ignore::DeprecationWarning:xgrammar.*"),
]

PROMPT = [3 + (7 * position) % 250 for position in range(101)]
"""Of its tokens 96 are shared in blocks of 32; each member computes the other five."""
SHARED, OWN = 96, 5


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tiny_ensembles: dict[str, Path]) -> Iterator["InProcessEngine"]:
    from tests.stress.engine import InProcessEngine

    engine = InProcessEngine(
        tiny_base,
        [tiny_ensembles[name] for name in ("block-4", "block-2", "always-4")],
        max_model_len=256,
        num_gpu_blocks_override=64,
        max_num_batched_tokens=128,
        max_num_seqs=14,
    )
    yield engine
    engine.close()


@pytest.fixture(autouse=True)
def nothing_cached(request: pytest.FixtureRequest) -> None:
    if "engine" in request.fixturenames:
        request.getfixturevalue("engine").scheduler.reset_prefix_cache()


class Asked:
    """One finished request: its drawn tokens, vLLM's own account of its prompt, and the tokens computed meanwhile."""

    def __init__(
        self, engine: "InProcessEngine", model: str | None, prompt: Sequence[int], **settings: Any
    ) -> None:
        from vllm import SamplingParams

        from softspec.engine.front.translation import split_position

        self.computed: list[int] = []
        schedule = engine.scheduler.schedule

        def counted(throttle_prefills: bool = False) -> "SchedulerOutput":
            output = schedule(throttle_prefills)
            self.computed.append(output.total_num_scheduled_tokens)
            return output

        params = SamplingParams(**{"temperature": 0, "max_tokens": 1, "ignore_eos": True, **settings})
        ids, _ = engine.submit("asked", model, prompt, params)
        with patch.object(engine.scheduler, "schedule", counted):
            done = [output for output in self._outputs(engine, ids) if output.request_id == "asked"]
        self.cached = done[-1].num_cached_tokens
        self.token_ids = list(done[-1].outputs[0].token_ids)
        spec = engine.specs.get(model)
        logprobs = done[-1].outputs[0].logprobs
        self.tokens: list[TokenUncertainty] = []
        if spec is not None:
            self.tokens = [split_position(logprobs, i, spec, 0)[0] for i in range(len(logprobs))]

    @staticmethod
    def _outputs(engine: "InProcessEngine", ids: list[str]) -> Iterator["RequestOutput"]:
        while any(request_id in engine.scheduler.requests for request_id in ids):
            yield from engine.step()


def test_prompt_is_computed_once_for_all_members_and_in_the_step_that_draws(
    engine: "InProcessEngine",
) -> None:
    asked = Asked(engine, "block-4", PROMPT)

    assert asked.computed == [SHARED + 4 * OWN]
    assert asked.cached == 0


def test_shared_blocks_serve_other_ensembles_and_the_base(engine: "InProcessEngine") -> None:
    first = Asked(engine, None, PROMPT)
    others = [Asked(engine, model, PROMPT) for model in ("block-4", "block-2", "block-2/member-1", None)]

    assert first.computed == [len(PROMPT)]
    assert [asked.computed for asked in others] == [[4 * OWN], [2 * OWN], [OWN], [OWN]]
    assert [asked.cached for asked in others] == [SHARED] * 4


def test_adapters_that_act_everywhere_share_nothing(engine: "InProcessEngine") -> None:
    Asked(engine, None, PROMPT)

    assert sum(Asked(engine, "always-4", PROMPT).computed) == 4 * len(PROMPT)


def test_groups_that_enter_in_one_step_leave_slots_for_each_others_trunk(engine: "InProcessEngine") -> None:
    """Three prompts to compute at once, fourteen slots: twelve members fit, their three trunks do not."""
    from vllm import SamplingParams

    from tests.stress.watch import Watch

    watch = Watch(engine)
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    for number in range(3):
        engine.submit(f"group-{number}", "block-4", PROMPT[number : number + 33], params)

    outputs = []
    while engine.scheduler.requests:
        outputs += engine.step()
        watch.after_step()

    watch.close()
    finished = [output.outputs[0] for output in outputs if output.finished]
    assert [(answer.finish_reason, len(answer.token_ids)) for answer in finished] == [("length", 3)] * 3


def test_next_turn_of_a_chat_reuses_the_blocks_of_the_last(engine: "InProcessEngine") -> None:
    first = Asked(engine, "block-4", PROMPT, max_tokens=20)
    turn = [*PROMPT, *first.token_ids, *PROMPT[:20]]

    second = Asked(engine, "block-4", turn)

    # The answer is prompt now, where adapters are off: its blocks are computed anew, once.
    assert second.cached == SHARED
    assert second.computed == [(128 - SHARED) + 4 * (len(turn) - 128)]


def test_shared_blocks_lost_before_the_members_read_them_are_computed_again(
    engine: "InProcessEngine", tiny_base: Path, tiny_ensembles: dict[str, Path]
) -> None:
    """Never with an adapter on: the answer is the reference's, and members start behind the shared tokens."""
    from vllm import SamplingParams

    from tests.stress.watch import Watch

    prompt = [*PROMPT, *PROMPT]
    reference = ReferenceEnsemble.load(tiny_base, tiny_ensembles["block-4"])
    expected = reference.decode(prompt, SamplingSpec(temperature=0), 3)
    watch = Watch(engine)
    engine.submit("lost", "block-4", prompt, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    engine.step()
    (group,) = engine.groups
    assert group.trunk is not None
    assert group.trunk.num_computed_tokens == 128

    engine.scheduler._drop_trunk(group)
    assert engine.scheduler.reset_prefix_cache()
    outputs = []
    while engine.scheduler.requests:
        outputs += engine.step()
        watch.after_step()

    watch.close()
    assert group.trunks_made == 2
    assert outputs[-1].outputs[0].token_ids == [token.token_id for token in expected]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("model", ["block-4", "always-4"])
def test_seed_replays_an_answer_in_any_company_and_after_a_restart(
    engine: "InProcessEngine", tiny_engine: "EngineHarness", model: str, temperature: float
) -> None:
    """The other engine is another process, with other sizes of steps and cache."""
    from vllm import SamplingParams

    from tests.support.engine_harness import Question

    settings: dict[str, Any] = {"seed": 5, "temperature": temperature, "max_tokens": 24, "ignore_eos": True}
    busy = SamplingParams(temperature=1.0, max_tokens=40, ignore_eos=True)
    for number, neighbour in enumerate(("block-2", None, "always-4", "block-4/member-2", "block-4")):
        engine.submit(f"neighbour-{number}", neighbour, PROMPT[number:], busy)

    crowded = Asked(engine, model, PROMPT, **settings)
    while engine.scheduler.requests:
        engine.step()
    alone = Asked(engine, model, PROMPT, **settings)
    (elsewhere,) = tiny_engine.ask(Question(model, PROMPT, SamplingParams(**settings)))

    for tokens in (crowded.tokens, elsewhere.choices[0].tokens):
        assert largest_difference(tokens, alone.tokens) < 1e-4


def known(engine: "InProcessEngine", model: str, **known_tokens: Any) -> str:
    """The name of a model that goes along tokens which are known."""
    engine.specs["known"] = replace(engine.specs[model], **known_tokens)
    return "known"


@pytest.mark.parametrize(
    ("model", "prompt_tokens"), [("block-4", SHARED + 4 * OWN), ("always-4", 4 * len(PROMPT))]
)
def test_options_of_one_token_cost_the_prompt_and_one_step(
    engine: "InProcessEngine", model: str, prompt_tokens: int
) -> None:
    """Ten of them: no row more than a single drawn token takes."""
    options = tuple(range(30, 40))

    asked = Asked(engine, known(engine, model, forced=options[:1], watched=(options,)), PROMPT)

    assert sum(asked.computed) == prompt_tokens
    assert asked.token_ids == [30]


@pytest.mark.parametrize("model", ["block-4", "always-4"])
def test_a_second_answer_to_a_prompt_computes_what_is_behind_its_last_block(
    engine: "InProcessEngine", model: str
) -> None:
    answer = (5, 6, 7)
    name = known(engine, model, forced=answer)
    first, second = [Asked(engine, name, PROMPT, max_tokens=3) for _ in range(2)]

    assert sum(second.computed) == 4 * OWN + 2 * 4
    assert second.token_ids == [*answer]
    assert largest_difference(second.tokens, first.tokens) < 1e-4


def test_a_forced_token_that_no_member_can_give_ends_nothing(engine: "InProcessEngine") -> None:
    """Its probability is zero, and that is the answer; a request that draws would have to end."""
    mixer = engine.runner.sampler.mixer
    mix = mixer.mix

    def without_token_7(logits: Any, groups: Any) -> None:
        logits[:, 7] = -math.inf
        mix(logits, groups)

    with patch.object(mixer, "mix", without_token_7):
        asked = Asked(engine, known(engine, "block-2", forced=(5, 7, 9)), PROMPT, max_tokens=3)

    assert asked.token_ids == [5, 7, 9]
    assert [token.log_prob > -math.inf for token in asked.tokens] == [True, False, True]
