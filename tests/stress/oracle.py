"""The second road: what an answer must have been, from transformers and PEFT, given its prompt and its tokens.

In: an ask, its seed, its tokens and everything that was said about them. Out: nothing, or an AssertionError. The
request's own constraints, biases, penalties and filters are applied here by code that shares nothing with the engine.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xgrammar
from torch import Tensor

from softspec.engine.wire import NO_TOKEN_LEFT
from softspec.maths.answer import TokenUncertainty
from softspec.maths.mixture import prefix_log_weights
from softspec.maths.sampling import gumbel_noise
from softspec.maths.uncertainty import Predictive, predict
from softspec.reference import ReferenceEnsemble
from tests.stress.traffic import EOS, VOCAB_SIZE, Ask
from tests.support.parity import NUMBERS, TOLERANCE, reference_of
from tests.support.tiny import tiny_tokenizer


@dataclass(frozen=True)
class Answer:
    """What came back. `tokens` are empty for the base, which has no telemetry; `top` is None without logprobs."""

    token_ids: list[int]
    text: str
    finish_reason: str
    stop_reason: int | str | None
    seed: int
    tokens: list[TokenUncertainty]
    watched: list[dict[int, tuple[float, ...]]]
    top: list[Mapping[int, Any]] | None


class Oracle:
    """Checks answers of ensembles, their members and the base."""

    def __init__(self, base: Path, ensembles: Mapping[str, Path], max_model_len: int) -> None:
        self._references = {name: ReferenceEnsemble.load(base, path) for name, path in ensembles.items()}
        self._max_model_len = max_model_len
        self._tokenizer = tiny_tokenizer(VOCAB_SIZE)
        self._grammars = xgrammar.GrammarCompiler(
            xgrammar.TokenizerInfo.from_huggingface(self._tokenizer, vocab_size=VOCAB_SIZE), max_threads=1
        )

    def check(self, ask: Ask, answer: Answer) -> None:
        if answer.finish_reason == "error":
            self._check_error(ask, answer)
            return
        self._check_ending(ask, answer)
        _check_structure(ask, answer)
        logits = self._logits(ask, answer.token_ids) + self._grammar_mask(ask, answer.token_ids)
        constrained = self._constrained(ask, answer.token_ids, logits)
        if ask.model is None:
            # vLLM's own log-probabilities know of grammars, and of nothing else.
            mixture, scores = logits[0].log_softmax(-1), constrained[0]
        else:
            member_logprobs = constrained.log_softmax(-1)
            log_weights = self._log_weights(ask.model, member_logprobs, answer.token_ids)
            predictive = predict(member_logprobs.transpose(0, 1), log_weights.T)
            _check_telemetry(answer, member_logprobs, predictive)
            mixture = predictive.logprobs
            scale = (log_weights.exp() * constrained.logsumexp(-1)).sum(0)
            scores = mixture + scale[:, None]
        if ask.forced:
            assert tuple(answer.token_ids) == ask.forced
            _check_watched(ask, answer, member_logprobs)
            return
        _check_draws(ask, answer, self._adjusted(ask, answer.token_ids, scores))
        if answer.top is not None:
            _check_top(ask.settings["logprobs"], answer, mixture)

    def _check_error(self, ask: Ask, answer: Answer) -> None:
        """A group ends with an error where its own constraints leave no token, and nowhere before."""
        assert answer.stop_reason == NO_TOKEN_LEFT
        assert ask.model is not None
        ids = [*answer.token_ids, 0]
        possible = torch.zeros(1, len(ids), VOCAB_SIZE) + self._grammar_mask(ask, answer.token_ids, then=1)
        possible = self._constrained(ask, ids, possible)[0] > -math.inf
        assert possible.any(-1).tolist() == [True] * len(answer.token_ids) + [False]

    def _check_ending(self, ask: Ask, answer: Answer) -> None:
        settings, ids = ask.settings, answer.token_ids
        length = min(settings["max_tokens"], self._max_model_len - len(ask.prompt))
        may_stop = range(max(settings.get("min_tokens", 0) - 1, 0), len(ids))
        enders = set(settings.get("stop_token_ids", ())) | (set() if settings["ignore_eos"] else {EOS})
        assert [i for i in may_stop if ids[i] in enders] in ([], [len(ids) - 1]), "went on after its end"
        if answer.finish_reason == "length":
            assert len(ids) == length
            return
        assert answer.finish_reason == "stop", answer.finish_reason
        if isinstance(answer.stop_reason, str):
            assert answer.stop_reason in settings["stop"]
            assert answer.stop_reason in self._tokenizer.decode(ids, skip_special_tokens=True)
        else:
            assert ids[-1] == (EOS if answer.stop_reason is None else answer.stop_reason)
            assert ids[-1] in enders
        if not settings.get("min_tokens"):
            assert not any(stop in answer.text for stop in settings.get("stop", ())), answer.text

    @torch.no_grad()
    def _logits(self, ask: Ask, token_ids: Sequence[int]) -> Tensor:
        """(K, T, V): raw logits of every member at every drawn position, the answer given."""
        reference = reference_of(self._references, ask.model or next(iter(self._references)))
        model, ids = reference.model, list(ask.prompt)
        if ask.model is None:
            with model.disable_adapter():
                logits = model(torch.tensor([[*ids, *token_ids[:-1]]])).logits
            return logits[:, len(ids) - 1 :]
        caches = reference.caches_after_shared_prompt(ids)
        shared = caches[0].get_seq_length()
        rest = torch.tensor([[*ids[shared:], *token_ids[:-1]]])
        rows = []
        for adapter, cache in zip(reference.adapters, caches, strict=True):
            model.set_adapter(adapter)
            rows.append(model(rest, past_key_values=cache, use_cache=True).logits[0, len(ids) - shared - 1 :])
        return torch.stack(rows)

    def _grammar_mask(self, ask: Ask, token_ids: Sequence[int], then: int = 0) -> Tensor:
        """(T + then, V): 0 where the grammar allows a token after those before it, -inf elsewhere."""
        mask = torch.zeros(len(token_ids) + then, VOCAB_SIZE)
        if ask.regex is not None:
            grammar = self._grammars.compile_regex(ask.regex)
        elif ask.schema is not None:
            grammar = self._grammars.compile_json_schema(ask.schema, any_whitespace=True)
        else:
            return mask
        enders = {EOS, *ask.settings.get("stop_token_ids", ())}
        matcher = xgrammar.GrammarMatcher(grammar, override_stop_tokens=sorted(enders))
        bits = xgrammar.allocate_token_bitmask(1, VOCAB_SIZE)
        for t, row in enumerate(mask):
            if matcher.is_terminated():
                break  # an ignored end of text ends the grammar: from there everything goes
            matcher.fill_next_token_bitmask(bits)
            xgrammar.apply_token_bitmask_inplace(row[None], bits)
            if t < len(token_ids):
                assert matcher.accept_token(token_ids[t]), "the grammar does not allow this token"
        return mask

    def _log_weights(self, model: str, member_logprobs: Tensor, token_ids: Sequence[int]) -> Tensor:
        """(K, T): the weights that mix each token."""
        reference = reference_of(self._references, model)
        prior = reference.prior.float()
        if reference.manifest.weights_rule == "fixed":
            return prior[:, None].expand(-1, len(token_ids))
        drawn = torch.tensor(token_ids).expand(len(prior), -1)[..., None]
        return prefix_log_weights(prior, member_logprobs.gather(-1, drawn)[..., 0]).float()

    def _constrained(self, ask: Ask, token_ids: Sequence[int], logits: Tensor) -> Tensor:
        """(K, T, V): without the tokens that the request forbids every member, in vLLM's order."""
        logits, settings = logits.clone(), ask.settings
        words = [self._tokenizer.encode(word) for word in settings.get("bad_words", ())]
        enders = [EOS, *settings.get("stop_token_ids", ())]
        for t in range(logits.shape[1]):
            rows, output = logits[:, t], list(token_ids[:t])
            if "allowed_token_ids" in settings:
                rows[:, sorted(set(range(VOCAB_SIZE)) - set(settings["allowed_token_ids"]))] = -math.inf
            for *start, last in words:
                if len(start) <= t and output[t - len(start) :] == start:
                    rows[:, last] = -math.inf
            if t < settings.get("min_tokens", 0):
                before = rows[:, enders].clone()
                rows[:, enders] = -math.inf
                if ask.structured and (rows == -math.inf).all():
                    rows[:, enders] = before  # vLLM would rather end a grammar early than break it
            banned = [token for token, bias in settings.get("logit_bias", {}).items() if bias <= -100]
            if ask.model is not None:
                rows[:, banned] = -math.inf
        return logits

    def _adjusted(self, ask: Ask, token_ids: Sequence[int], scores: Tensor) -> Tensor:
        """(T, V): after biases and penalties, in vLLM's order."""
        scores, settings = scores.clone(), ask.settings
        for t, row in enumerate(scores):
            output = list(token_ids[:t])
            for token, bias in settings.get("logit_bias", {}).items():
                row[token] += bias
            counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=VOCAB_SIZE)
            repetition = settings.get("repetition_penalty", 1.0)
            seen = torch.tensor(sorted({*ask.prompt, *output}))
            row[seen] = torch.where(row[seen] > 0, row[seen] / repetition, row[seen] * repetition)
            row -= settings.get("frequency_penalty", 0.0) * counts
            row -= settings.get("presence_penalty", 0.0) * (counts > 0)
        return scores


def _check_structure(ask: Ask, answer: Answer) -> None:
    cut = answer.finish_reason != "stop" or isinstance(answer.stop_reason, str)
    if cut or ask.settings["ignore_eos"] or ask.settings.get("min_tokens"):
        return  # the grammar's end was not reached, or was not the end of the answer
    if ask.regex is not None:
        assert re.fullmatch(ask.regex, answer.text), answer.text
    if ask.schema is not None:
        _check_value(json.loads(ask.schema), json.loads(answer.text))


def _check_value(schema: Mapping[str, Any], value: Any) -> None:
    if "enum" in schema:
        assert value in schema["enum"]
    elif schema["type"] == "boolean":
        assert isinstance(value, bool)
    else:
        assert set(value) == set(schema["required"])
        for key, each in value.items():
            _check_value(schema["properties"][key], each)


def _check_telemetry(answer: Answer, member_logprobs: Tensor, predictive: Predictive) -> None:
    ids = torch.tensor(answer.token_ids)
    assert [token.token_id for token in answer.tokens] == answer.token_ids
    expected = {
        "log_prob": predictive.logprobs.gather(-1, ids[:, None])[:, 0],
        **{name: getattr(predictive, name) for name in NUMBERS if name != "log_prob"},
    }
    undecided = _nearly_tied(predictive.logprobs) | _nearly_tied(member_logprobs).any(0)
    for name, values in expected.items():
        found = torch.tensor([getattr(token, name) for token in answer.tokens])
        gap = (found - values).abs()
        if name == "disagreement":
            gap = gap.masked_fill(undecided, 0.0)
        assert gap.max() < TOLERANCE, (name, int(gap.argmax()), found, values)
    found = torch.tensor([token.member_log_probs for token in answer.tokens]).T
    values = member_logprobs.gather(-1, ids.expand(len(member_logprobs), -1)[..., None])[..., 0]
    assert (found - values).abs().max() < TOLERANCE, ("member_log_probs", found, values)


def _check_watched(ask: Ask, answer: Answer, member_logprobs: Tensor) -> None:
    assert [tuple(step) for step in answer.watched] == [tuple(dict.fromkeys(step)) for step in ask.watched]
    for t, step in enumerate(answer.watched):
        for token, found in step.items():
            gap = (torch.tensor(found) - member_logprobs[:, t, token]).abs().max()
            assert gap < TOLERANCE, ("watched", t, token, found)


def _nearly_tied(logprobs: Tensor) -> Tensor:
    first, second = logprobs.topk(2).values.unbind(-1)
    return first - second < TOLERANCE


def _check_draws(ask: Ask, answer: Answer, scores: Tensor) -> None:
    """Every drawn token is the best one, or so near to it that rounding decides."""
    settings, ids = ask.settings, torch.tensor(answer.token_ids)
    temperature = settings["temperature"]
    if temperature == 0:
        possible, certain, ranked = scores > -math.inf, scores > -math.inf, scores
    else:
        scaled = scores / temperature
        slack = TOLERANCE / temperature
        possible, certain = _kept(scaled, settings, slack), _kept(scaled, settings, -slack)
        seeds = torch.full((len(ids),), answer.seed)
        noise = gumbel_noise(seeds, torch.arange(len(ids)), VOCAB_SIZE)
        ranked = scaled + noise
    drawn = ids[:, None]
    assert possible.gather(-1, drawn).all(), "drew a token that is masked or filtered"
    if ask.model is None and temperature > 0:
        return  # the base draws with vLLM's own noise
    best = ranked.masked_fill(~certain, -math.inf).amax(-1)
    lag = best - ranked.gather(-1, drawn)[:, 0]
    assert lag.max() < TOLERANCE / (temperature or 1.0), (int(lag.argmax()), float(lag.max()))


def _kept(scaled: Tensor, settings: Mapping[str, Any], slack: float) -> Tensor:
    """(T, V) bool: what min-p, then top-k, then top-p keep; with `slack` > 0 a little more, below 0 a little less."""
    best = scaled.amax(-1, keepdim=True)
    kept = scaled > -math.inf
    if settings.get("min_p"):
        kept &= scaled >= best + math.log(settings["min_p"]) - slack
    if settings.get("top_k"):
        last = scaled.masked_fill(~kept, -math.inf).topk(settings["top_k"]).values[:, -1:]
        kept &= scaled >= last - slack
    if settings.get("top_p", 1.0) < 1:
        mass = scaled.masked_fill(~kept, -math.inf).double().softmax(-1)
        order = mass.argsort(descending=True)
        above = torch.zeros_like(mass).scatter(-1, order, mass.gather(-1, order).cumsum(-1)) - mass
        kept &= above < settings["top_p"] + slack
    return kept | (scaled == best)


def _check_top(num_top: int, answer: Answer, mixture: Tensor) -> None:
    """The drawn token's and the likeliest tokens' log-probabilities, as the mixture has them."""
    assert answer.top is not None
    assert len(answer.top) == len(answer.token_ids)
    for row, token, entries in zip(mixture, answer.token_ids, answer.top, strict=True):
        for each, entry in entries.items():
            assert _near(entry.logprob, float(row[each])), (each, entry, float(row[each]))
        found = sorted((entry.logprob for entry in entries.values()), reverse=True)
        expected = row.topk(num_top).values.tolist()
        assert token in entries
        assert len(entries) in (num_top, num_top + 1)
        assert all(_near(*pair) for pair in zip(found, expected, strict=False)), (found, expected)
        rank, value = entries[token].rank, float(row[token])
        assert int((row > value + TOLERANCE).sum()) < rank <= int((row >= value - TOLERANCE).sum())


def _near(found: float, expected: float) -> bool:
    return found == expected or abs(found - expected) < TOLERANCE
