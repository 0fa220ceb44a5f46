"""The transformers backend: an ensemble directory's members, stacked in their base.

In: a directory and a base. Out: the answers of a `Backend`, on any device. Needs no peft and no vllm.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from softspec.artefact.manifest import load_manifest
from softspec.ensemble.backend import Asked, Draw, Drawn, Sampling, Traces
from softspec.ensemble.results import ScoredChoices
from softspec.ensemble.stacked.batches import Limits, numbered, windows
from softspec.ensemble.stacked.beneath import keeping
from softspec.ensemble.stacked.drawn import draw_answers
from softspec.ensemble.stacked.given import mixture_loglik, states_of, token_logliks, trace_of
from softspec.ensemble.stacked.mixing import Mixing
from softspec.ensemble.stacked.rows import followed
from softspec.ensemble.stacked.speech import Speech
from softspec.ensemble.texts import Texts
from softspec.errors import ConfigError
from softspec.maths.answer import TokenUncertainty
from softspec.train.members.base import load_base
from softspec.train.members.load import load_members
from softspec.train.members.members import Members
from softspec.train.members.servable import cache_kinds

TOKENS_AT_ONCE = {"cpu": 2**14, "cuda": 2**16}
"""Of all members together, those in caches included."""
ROWS_AT_ONCE = {"cpu": 64, "cuda": 512}
"""Enough that those of one length can go together, few enough that the first answers are not long in coming."""


class StackedBackend:
    """K members in one transformers model; what they share is computed once."""

    def __init__(
        self,
        ensemble_dir: Path,
        base: str,
        texts: Texts,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
    ) -> None:
        """Read the base and every adapter.

        Args:
            texts: the base's tokenizer, and where its answers end.

        Raises:
            ConfigError: there is no base, it lacks weights, or it remembers a prompt by more than attention.
            ManifestError: the directory is no ensemble of this base.
        """
        manifest = load_manifest(ensemble_dir)
        model = load_base(base, revision, dtype, None if device is None else torch.device(device))
        kinds = cache_kinds(model)
        if "state" in kinds:
            raise ConfigError(
                f"base '{base}' ({type(model).__name__}) remembers a prompt by more than attention, which several "
                "answers cannot share: use PEFT with one member at a time"
            )
        self.members: Members = load_members(ensemble_dir, model)
        self._texts, self._base = texts, manifest.base_model.fingerprint
        self._mixing = Mixing(torch.tensor(manifest.log_weights, dtype=torch.float64), manifest.weights_rule)
        kind = model.device.type if model.device.type in TOKENS_AT_ONCE else "cpu"
        self._limits = Limits(
            num_members=manifest.num_members,
            block_size=manifest.activation.block_size,
            rows_at_once=ROWS_AT_ONCE[kind],
            tokens_at_once=TOKENS_AT_ONCE[kind],
            has_windows=kinds != {"full"},
        )

    def keep_prompts(self, num_tokens: int) -> None:
        """Keep what the base makes of prompts for other ensembles of it that are asked the same, in this order.

        Args:
            num_tokens: of all prompts; more than there is room for are not kept.
        """
        if self._base and not self._limits.has_windows:
            first = self.members.spec.layers[0]
            self.members.frozen = keeping(self.members.model, first, self._base, num_tokens)

    def choices(self, asked: Iterable[Asked]) -> Iterator[ScoredChoices]:
        """Log-probabilities of whole answers."""
        for window in windows(asked, self._limits.rows_at_once):
            prompts, answers, places = _different(window)
            known: dict[int, tuple[float, list[float], int]] = {}
            for numbers, states, head in states_of(self.members, self._limits, prompts, answers):
                found = token_logliks(states, [answers[number] for number in numbers], head)
                for number, tokens in zip(numbers, found, strict=True):
                    total = mixture_loglik(tokens, self._mixing)
                    known[number] = total, tokens.sum(1).tolist(), tokens.shape[1]
            for own in places:
                mixture, members, lengths = zip(*(known[number] for number in own), strict=True)
                yield ScoredChoices(tuple(mixture), tuple(zip(*members, strict=True)), tuple(lengths))

    def traces(self, asked: Iterable[Asked]) -> Iterator[Traces]:
        """Every token of every answer with its uncertainty."""
        for window in windows(asked, self._limits.rows_at_once):
            prompts, answers, places = _different(window)
            known: dict[int, list[TokenUncertainty]] = {}
            for numbers, states, head in states_of(self.members, self._limits, prompts, answers):
                for place, number in enumerate(numbers):
                    ids = answers[number][1]
                    own_states = states[:, place, : len(ids)]
                    known[number] = trace_of(own_states, ids, head, self._mixing)
            for own in places:
                yield [known[number] for number in own]

    def draw(self, draws: Sequence[Draw], sampling: Sampling) -> Iterator[tuple[int, Drawn]]:
        """An answer to every prompt, batch by batch."""
        prompts, prompt_of = numbered(draw.prompt_ids for draw in draws)
        followers = [(prompt, draw.max_tokens) for prompt, draw in zip(prompt_of, draws, strict=True)]
        for numbers, rows in followed(self.members, self._limits, prompts, followers):
            batch = [draws[number] for number in numbers]
            speeches = [self._speech(draw, sampling) for draw in batch]
            seeds, go_on = [draw.seed for draw in batch], [speech.add for speech in speeches]
            tokens = draw_answers(rows, seeds, self._mixing, sampling, go_on)
            for number, speech, own in zip(numbers, speeches, tokens, strict=True):
                yield number, Drawn(speech.text, tuple(own), speech.finish_reason)

    def _speech(self, draw: Draw, sampling: Sampling) -> Speech:
        texts = self._texts
        return Speech(texts.tokenizer, draw.prompt_ids, draw.max_tokens, texts.stop_ids, sampling.stop)

    def close(self) -> None:
        """Let go of the weights."""
        del self.members


def _different(
    window: Sequence[Asked],
) -> tuple[list[tuple[int, ...]], list[tuple[int, tuple[int, ...]]], list[list[int]]]:
    """The different prompts, the different answers to them with their prompts' numbers, and each row's answers."""
    prompts, prompt_of = numbered(asked.prompt_ids for asked in window)
    pairs = [
        (prompt, answer) for prompt, asked in zip(prompt_of, window, strict=True) for answer in asked.answers
    ]
    answers, answer_of = numbered(pairs)
    rest = iter(answer_of)
    return prompts, answers, [[next(rest) for _ in asked.answers] for asked in window]
