"""The V2 adapter inside vLLM's real V2 classes, with their Triton kernels interpreted, against the reference decoder.

Run by `test_model_runner_v2.py`, in a process of its own.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import vllm.v1.worker.cpu.shm  # noqa: F401  # isort: skip  # first, as vLLM's CPU worker does

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.request import Request
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers, post_update
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.states import RequestState

from softspec.artefact.manifest import WeightsRule
from softspec.engine.core.requests import member_requests
from softspec.engine.wire import COLUMNS, Adapter, GroupSpec, unpack, unpack_watched
from softspec.engine.worker.install import EnsembleWorker
from softspec.engine.worker.runner_v2 import EnsembleSampler
from softspec.maths.answer import TokenUncertainty
from softspec.maths.mixture import mixture_logits, update_log_weights
from softspec.maths.sampling import SamplingSpec
from softspec.maths.uncertainty import predict
from softspec.reference import draw_next
from tests.support.parity import largest_difference

VOCAB_SIZE = 50
MAX_NUM_REQS = 16
CPU = torch.device("cpu")
PROMPT = [3, 1, 4, 1, 5]


class Runner:
    """The part of model runner V2 around its sampler: slots, batches, and what happens to a drawn token."""

    def __init__(self, with_groups: bool = True) -> None:
        self.req_states = RequestState(
            MAX_NUM_REQS,
            max_model_len=64,
            max_num_batched_tokens=64,
            num_speculative_steps=0,
            vocab_size=VOCAB_SIZE,
            device=CPU,
        )
        self.sampler: Any = Sampler(VllmConfig(), MAX_NUM_REQS, VOCAB_SIZE, CPU, self.req_states)
        self.device = CPU
        self.lora_manager = SimpleNamespace(
            _adapter_manager=SimpleNamespace(punica_wrapper_mapping={}, modules={})
        )
        if with_groups:
            worker = EnsembleWorker()
            worker.model_runner = self
            worker.install_ensemble_sampler()

    def finish_requests(self, scheduler_output: Any) -> None:
        for request_id in scheduler_output.finished_req_ids | scheduler_output.preempted_req_ids:
            self.req_states.remove_request(request_id)

    def leave(self, finished: Sequence[str] = (), preempted: Sequence[str] = ()) -> None:
        self.finish_requests(
            SimpleNamespace(finished_req_ids=set(finished), preempted_req_ids=set(preempted))
        )

    def enter(self, request_id: str, params: SamplingParams, output: Sequence[int] = ()) -> None:
        self.req_states.add_request(request_id, len(PROMPT), [*PROMPT, *output], 0, max_tokens=32)
        self.sampler.add_request(self.req_states.req_id_to_index[request_id], params)

    def step(self, lengths: dict[str, int], logits: Tensor) -> SamplerOutput:
        """One step of these requests, in this order, each computed up to `lengths` tokens."""
        self.req_states.apply_staged_writes()
        self.sampler.apply_staged_writes()
        slots = np.array([self.req_states.req_id_to_index[name] for name in lengths])
        batch = InputBatch.make_dummy(len(slots), len(slots), InputBuffers(MAX_NUM_REQS, 64, CPU))
        seq_lens = torch.tensor(list(lengths.values()), dtype=torch.int32)
        batch = dataclasses.replace(
            batch,
            req_ids=list(lengths),
            idx_mapping=torch.from_numpy(slots),
            idx_mapping_np=slots,
            expanded_idx_mapping=torch.from_numpy(slots),
            positions=seq_lens.long() - 1,
            seq_lens=seq_lens,
            seq_lens_cpu_upper_bound=seq_lens,
            prefill_len_np=self.req_states.prefill_len.np[slots],
        )
        output = self.sampler(logits.clone(), batch)
        post_update(
            batch.idx_mapping,
            self.req_states.num_computed_tokens.gpu,
            self.req_states.last_sampled_tokens,
            self.sampler.penalties_state.output_bin_counts,
            output.sampled_token_ids,
            output.num_sampled,
            output.num_rejected,
            batch.query_start_loc,
            self.req_states.all_token_ids.gpu,
            self.req_states.total_len.gpu,
        )
        return output


class Group:
    """One ensemble request as the scheduler would send it, and what the reference says about its next token."""

    def __init__(
        self,
        name: str,
        num_members: int,
        weights_rule: WeightsRule = "prefix_posterior",
        num_top: int = 0,
        forced: tuple[int, ...] = (),
        watched: tuple[tuple[int, ...], ...] = (),
        **settings: Any,
    ) -> None:
        log_weights = torch.arange(1.0, num_members + 1).log().log_softmax(0).tolist()
        adapters = tuple(Adapter(f"{name}/{k}", 1 + k, "path") for k in range(num_members))
        self.spec = GroupSpec(
            adapters, tuple(log_weights), weights_rule, None, num_top, forced=forced, watched=watched
        )
        words = settings.pop("bad_words", None)
        params = SamplingParams(**{"seed": 7, "logprobs": num_top + self.spec.num_columns, **settings})
        params._bad_words_token_ids = words  # what vLLM's front end makes of words
        params._all_stop_token_ids = set(params.stop_token_ids or ())
        self.settings = params
        names = [field.name for field in dataclasses.fields(SamplingSpec) if field.name != "logit_bias"]
        biases = tuple((params.logit_bias or {}).items())
        self.sampling = SamplingSpec(**{each: getattr(params, each) for each in names}, logit_bias=biases)
        leader = Request(name, list(PROMPT), params, None)
        self.members = {
            each.request_id: each.sampling_params for each in member_requests(leader, self.spec, 0)
        }
        self.log_weights = [torch.tensor(log_weights, dtype=torch.float64)]
        self.output: list[int] = []
        self.expected_watched: dict[int, tuple[float, ...]] = {}

    @property
    def lengths(self) -> dict[str, int]:
        return dict.fromkeys(self.members, len(PROMPT) + len(self.output))

    def enter(self, runner: Runner) -> None:
        for request_id, params in self.members.items():
            runner.enter(request_id, params, self.output)

    def expect(self, member_logits: Tensor) -> tuple[TokenUncertainty, Tensor]:
        """The token that the reference draws from (K, V) logits, and the mixture."""
        member_logits = self._constrained(member_logits)
        member_logprobs = member_logits.log_softmax(-1)
        weights = self.log_weights[len(self.output)]
        predictive = predict(member_logprobs, weights)
        scores = mixture_logits(predictive.logprobs, weights, member_logits.logsumexp(-1))
        token_id = self.spec.forced_at(len(self.output))
        if token_id is None:
            token_id = draw_next(scores, PROMPT, self.output, self.sampling)
        self.expected_watched = {
            token: tuple(member_logprobs[:, token].tolist())
            for token in self.spec.watched_at(len(self.output))
        }
        updated = update_log_weights(weights, member_logprobs[:, token_id])
        del self.log_weights[len(self.output) + 1 :]
        self.log_weights.append(weights if self.spec.weights_rule == "fixed" else updated)
        self.output.append(token_id)
        expected = TokenUncertainty(
            token_id=token_id,
            log_prob=float(predictive.logprobs[token_id]),
            **{name: float(getattr(predictive, name)) for name in COLUMNS},
            member_log_probs=tuple(member_logprobs[:, token_id].tolist()),
            member_choices=tuple(member_logprobs.argmax(-1).tolist()),
        )
        return expected, predictive.logprobs

    def _constrained(self, member_logits: Tensor) -> Tensor:
        """The members' logits without the tokens that the request forbids at this position."""
        settings, allowed = self.settings, torch.ones(VOCAB_SIZE, dtype=torch.bool)
        if settings.allowed_token_ids:
            allowed = torch.isin(torch.arange(VOCAB_SIZE), torch.tensor(settings.allowed_token_ids))
        for *start, last in settings._bad_words_token_ids or ():
            if self.output[len(self.output) - len(start) :] == start:
                allowed[last] = False
        if len(self.output) < settings.min_tokens:
            allowed[settings.stop_token_ids] = False
        for token_id, bias in (settings.logit_bias or {}).items():
            if bias <= -100:
                allowed[token_id] = False
        return member_logits.masked_fill(~allowed, -torch.inf)


def some_logits(seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield 2 + 3 * torch.randn(VOCAB_SIZE, generator=generator)


def run(
    runner: Runner, groups: Sequence[Group], others: dict[str, int], logits: Iterator[Tensor], shift: int = 0
) -> SamplerOutput:
    """One step of whole groups and other rows, all in a changing order, compared with the reference."""
    lengths = {name: length for group in groups for name, length in group.lengths.items()} | others
    names = list(lengths)
    order = names[shift % len(names) :] + names[: shift % len(names)]
    rows = dict(zip(names, itertools.islice(logits, len(names)), strict=True))

    output = runner.step({name: lengths[name] for name in order}, torch.stack([rows[name] for name in order]))

    for group in groups:
        token, mixture = group.expect(torch.stack([rows[name] for name in group.members]))
        places = [order.index(name) for name in group.members]
        assert output.sampled_token_ids[places].flatten().tolist() == [token.token_id] * len(places)
        assert output.num_sampled[places].tolist() == [1] * len(places)
        assert output.logprobs_tensors is not None
        check_row(output.logprobs_tensors, places[0], group, token, mixture)
    return output


def check_row(
    found: LogprobsTensors, row: int, group: Group, expected: TokenUncertainty, mixture: Tensor
) -> None:
    end = 1 + group.spec.num_top
    ids, log_probs = found.logprob_token_ids[row].tolist(), found.logprobs[row].tolist()
    token = unpack(ids, log_probs, group.spec.num_top, group.spec.num_members)
    assert token.member_choices == expected.member_choices
    assert largest_difference([token], [expected]) < 1e-5
    told = unpack_watched(ids, log_probs, group.spec, len(group.output) - 1)
    assert told == {each: pytest.approx(seen) for each, seen in group.expected_watched.items()}
    top = mixture.topk(group.spec.num_top)
    assert found.logprob_token_ids[row, 1:end].tolist() == top.indices.tolist()
    torch.testing.assert_close(found.logprobs[row, 1:end], top.values)
    assert found.selected_token_ranks[row] == (mixture >= mixture[expected.token_id]).sum()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 1.3, "repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.4},
        {"temperature": 0.0, "repetition_penalty": 1.4, "frequency_penalty": 0.6},
        {"temperature": 1.0, "logit_bias": {9: 4.0, 11: -5.0}},
        {"temperature": 1.0, "repetition_penalty": 0.7, "logit_bias": {9: 4.0, 11: -5.0}},
    ],
    ids=lambda settings: "+".join(f"{name}" for name in settings),
)
def test_groups_draw_and_report_what_the_reference_does(settings: dict[str, Any]) -> None:
    """K of 1, 2 and 4, both weights rules, with and without likeliest tokens, between ordinary rows."""
    runner, logits = Runner(), some_logits(0)
    groups = [
        Group("one", 1, **settings),
        Group("two", 2, **settings, num_top=3),
        Group("four", 4, **settings),
        Group("fixed", 4, "fixed", **settings, num_top=1),
    ]
    for group in groups:
        group.enter(runner)
    runner.enter("plain", SamplingParams(temperature=0, logprobs=2))

    for step in range(6):
        run(runner, groups, {"plain": len(PROMPT) + step}, logits, shift=step)


@pytest.mark.parametrize(
    "settings",
    [
        {"allowed_token_ids": [*range(5, 20)]},
        {"bad_words": [[20], [7, 9], [30, 31]]},
        {"min_tokens": 4, "stop_token_ids": [*range(10, 30)]},
        {"logit_bias": {**dict.fromkeys(range(20), -100.0), 30: 2.0}},
        {
            "allowed_token_ids": [*range(5, 20)],
            "bad_words": [[6], [7, 9]],
            "min_tokens": 3,
            "stop_token_ids": [11, 12],
            "logit_bias": {13: -100.0, 14: 3.0},
            "repetition_penalty": 1.5,
            "top_k": 6,
        },
    ],
    ids=lambda settings: "+".join(settings),
)
def test_constraints_act_on_every_member_before_they_are_mixed(settings: dict[str, Any]) -> None:
    runner, logits = Runner(), some_logits(5)
    groups = [Group("one", 1, **settings), Group("three", 3, **settings, num_top=2)]
    for group in groups:
        group.enter(runner)
    runner.enter("plain", SamplingParams(temperature=0, logprobs=2))

    for step in range(6):
        run(runner, groups, {"plain": len(PROMPT) + step}, logits, shift=step)


def test_a_group_without_a_token_says_so_and_leaves_the_others_alone() -> None:
    runner, logits = Runner(), some_logits(6)
    stuck = Group("stuck", 2, allowed_token_ids=[5], logit_bias={5: -100.0})
    broken, other = Group("broken", 2), Group("other", 2)
    for group in (stuck, broken, other):
        group.enter(runner)
    rows = torch.stack([*itertools.islice(logits, 6)])
    expected, _ = other.expect(rows[4:])
    rows[3, 8] = torch.nan

    output = runner.step(stuck.lengths | broken.lengths | {name: len(PROMPT) for name in other.members}, rows)

    assert output.logprobs_tensors is not None
    assert output.logprobs_tensors.logprobs[0, 0] == -torch.inf
    assert output.logprobs_tensors.logprobs[2, 0].isnan()
    assert output.sampled_token_ids[4:].flatten().tolist() == [expected.token_id] * 2


def test_rows_inside_their_prefill_draw_nothing_and_teach_nothing() -> None:
    """Chunks of a prompt, of a group's members too, are in the batch with a group that draws."""
    runner, logits = Runner(), some_logits(1)
    held, drawing = Group("held", 2, temperature=1.0), Group("drawing", 4, temperature=1.0)
    held.enter(runner)
    drawing.enter(runner)
    runner.enter("plain", SamplingParams(temperature=0, logprobs=1))

    output = run(runner, [drawing], {"plain": 3, "held": 4, "held/member-1": 2}, logits)

    assert output.num_sampled.tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert set(runner.sampler.mixer.group_ids) == {"drawing"}
    for step in range(3):
        run(runner, [drawing, held], {"plain": 5 + step}, logits, shift=step)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_preempted_group_resumes_where_it_was(lost: int) -> None:
    """Other requests take its slots meanwhile; it comes back with its output as prefill, or with less of it."""
    runner, logits = Runner(), some_logits(2)
    group = Group("group", 4, temperature=1.0, frequency_penalty=0.5)
    group.enter(runner)
    for _ in range(4):
        run(runner, [group], {}, logits)

    runner.leave(preempted=list(group.members))
    for number in range(5):
        runner.enter(f"squatter-{number}", SamplingParams(temperature=0))
    del group.output[len(group.output) - lost :]
    group.enter(runner)

    run(runner, [], dict.fromkeys(group.members, len(PROMPT) + 1), logits)
    for step in range(3):
        run(runner, [group], {"squatter-1": len(PROMPT) + step}, logits, shift=step)


@pytest.mark.parametrize("lost", [0, 2])
def test_known_tokens_come_in_their_turn_and_watched_ones_are_told_of(lost: int) -> None:
    """Beside groups that draw, and after a preemption."""
    runner, logits = Runner(), some_logits(8)
    known = Group(
        "known", 4, forced=(9, 9, 41, 0, 3, 17), watched=((5, 6), (), (7,), (1, 2, 3), (), (49,)), num_top=1
    )
    fixed, drawing = Group("fixed", 2, "fixed", forced=(2,) * 9), Group("drawing", 2, temperature=1.0)
    for group in (known, fixed, drawing):
        group.enter(runner)
    for step in range(4):
        run(runner, [known, fixed, drawing], {}, logits, shift=step)

    runner.leave(preempted=list(known.members))
    runner.enter("squatter", SamplingParams(temperature=0))
    del known.output[len(known.output) - lost :]
    known.enter(runner)

    while len(known.output) < 6:
        run(runner, [known, fixed, drawing], {"squatter": len(PROMPT)}, logits)
    assert known.output == [9, 9, 41, 0, 3, 17]


def test_slots_of_finished_groups_are_free_for_anyone() -> None:
    runner, logits = Runner(), some_logits(3)
    first, second = Group("first", 4, temperature=1.0), Group("second", 2, temperature=1.0)
    first.enter(runner)
    run(runner, [first], {}, logits)

    runner.leave(finished=list(first.members))
    assert not runner.sampler.mixer.group_ids
    runner.enter("plain", SamplingParams(temperature=0, logprobs=2))
    second.enter(runner)

    taken = [runner.req_states.req_id_to_index[name] for name in ("plain", *second.members)]
    assert set(taken) < set(range(MAX_NUM_REQS - 4, MAX_NUM_REQS))
    output = run(runner, [second], {"plain": len(PROMPT)}, logits)
    assert output.logprobs_tensors is not None
    assert output.logprobs_tensors.logprobs[2, :3].isfinite().all()


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 0.8, "min_p": 0.1, "seed": 3}])
def test_ordinary_rows_are_what_they_are_without_groups(params: dict[str, Any]) -> None:
    runner, plain = Runner(), Runner(with_groups=False)
    group, logits = Group("group", 2, temperature=1.0), torch.stack([*itertools.islice(some_logits(4), 4)])
    group.enter(runner)
    for each in (runner, plain):
        each.enter("asks", SamplingParams(**params, logprobs=3))
        each.enter("asks-not", SamplingParams(**params))

    found = runner.step({"asks": 5, **group.lengths, "asks-not": 5}, logits)
    expected = plain.step({"asks": 5, "asks-not": 5}, logits[[0, 3]])

    assert torch.equal(found.sampled_token_ids[[0, 3]], expected.sampled_token_ids)
    assert found.logprobs_tensors is not None
    assert expected.logprobs_tensors is not None
    assert torch.equal(found.logprobs_tensors.logprobs[0, :4], expected.logprobs_tensors.logprobs[0])
    assert found.logprobs_tensors.logprob_token_ids[0, :4].tolist() == (
        expected.logprobs_tensors.logprob_token_ids[0].tolist()
    )


def test_kernels_are_interpreted_and_the_adapter_is_that_of_v2() -> None:
    from triton.runtime.interpreter import InterpretedFunction
    from vllm.v1.worker.gpu.sample.gumbel import _gumbel_sample_kernel

    assert isinstance(_gumbel_sample_kernel, InterpretedFunction)
    assert isinstance(Runner().sampler, EnsembleSampler)
