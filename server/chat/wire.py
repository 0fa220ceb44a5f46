"""The `uncertainty` field on the wire: what a request may ask and what a choice answers.

In: JSON from the caller, or the engine's trace. Out: validated requests, or the fields to send. Numbers are
nats except `disagreement` and `member_weights`, which are shares. Knows pydantic, but no HTTP and no engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from softspec.artefact.calibration import Calibration, calibration_of
from softspec.artefact.validation import as_key, first_problem, place_of_first, unknown_key
from softspec.engine.trace import ChoiceTrace
from softspec.errors import ConfigError, FieldError
from softspec.maths.answer import TokenUncertainty, summarise
from softspec.server.fields.doubt import doubtful_fields
from softspec.server.fields.message import Message
from softspec.server.policy.fields import PolicyFields
from softspec.server.policy.policy import Decision, Policy
from softspec.server.policy.rules import PolicyRules

Json = dict[str, Any]
EXTENSION = "uncertainty"
LOWEST_LOG_PROB = -9999.0
"""Stands for minus infinity, which JSON cannot carry; vLLM sends the same."""

Detail = Literal["summary", "tokens", "fields", "none"]
DecodeToken = Callable[[int], tuple[str, list[int]]]
"""A token's text and its bytes; of a character in several tokens only the bytes say something."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ExtensionFields(_Strict):
    """The `uncertainty` field of a request, as it is written."""

    detail: Detail = "summary"
    policy: PolicyFields | None = None


@dataclass(frozen=True)
class Terms:
    """What the caller wants to know, and what shall happen when the answer is uncertain.

    `fields`: whether the leaves of the answer's JSON are to be told apart.
    """

    detail: Detail
    policy: Policy
    fields: bool = False


def read_terms(extension: object, rules: PolicyRules, calibration: Calibration | None = None) -> Terms:
    """The terms of a request's `uncertainty` field, or the server's policy where it says nothing.

    Args:
        calibration: of the ensemble that is asked, for what it is asked.
    Raises:
        FieldError: unknown field, wrong type, a policy that cannot be followed, or one that the server does not allow.
    """
    try:
        fields = ExtensionFields() if extension is None else ExtensionFields.model_validate(extension)
    except ValidationError as error:
        raise _field_error(error, extension) from error
    try:
        return Terms(fields.detail, rules.asked_by(fields.policy, calibration))
    except FieldError as error:
        raise FieldError(f"{EXTENSION}.policy.{error.field}", f"{EXTENSION}.policy: {error}") from error
    except ConfigError as error:
        raise FieldError(f"{EXTENSION}.policy", str(error)) from error


def _field_error(error: ValidationError, extension: object) -> FieldError:
    problem = error.errors()[0]
    place = problem["loc"]
    if problem["type"] != "extra_forbidden" or "threshold" in place[:-1]:
        path = ".".join(filter(None, (EXTENSION, place_of_first(error, extension))))
        return FieldError(path, f"{EXTENSION}: {first_problem(error, extension)}")
    path = ".".join(str(part) for part in (EXTENSION, *place))
    fields = PolicyFields if place[0] == "policy" and len(place) > 1 else ExtensionFields
    key = ".".join(as_key(part) for part in place)
    return FieldError(path, f"{EXTENSION}: {key}: {unknown_key(str(place[-1]), fields.model_fields)}")


def full_report(
    trace: ChoiceTrace, tokens: Sequence[TokenUncertainty], decision: Decision, detail: Detail
) -> Json:
    """The `uncertainty` field of one finished choice, without its tokens and fields.

    `seed` replays exactly this choice.
    """
    verdict: Json = {
        "decision": decision.action,
        "reason": decision.reason,
        "decided_at": decision.decided_at,
    }
    if decision.upstream is not None:
        verdict["upstream"] = decision.upstream
    if detail == "none":
        return verdict
    return {**summary_report(trace, tokens), "seed": trace.seed, **verdict}


def summary_report(trace: ChoiceTrace, tokens: Sequence[TokenUncertainty]) -> Json:
    """The numbers of one answer, whoever wrote it; `confidence` is null unless the ensemble is calibrated for it."""
    summary = asdict(summarise(tokens, trace.log_weights, trace.weights_rule))
    calibration = calibration_of(trace.calibration, "answers")
    confidence = None if calibration is None else calibration.confidence(summary)
    summary["log_prob"] = _finite(summary["log_prob"])
    summary["member_log_probs"] = [_finite(value) for value in summary["member_log_probs"]]
    return {"unit": "nats", **summary, "confidence": confidence}


def token_reports(tokens: Sequence[TokenUncertainty], decode: DecodeToken) -> list[Json]:
    """The `tokens` list of the `uncertainty` field."""
    texts = [decode(token.token_id) for token in tokens]
    return [
        {
            "token": text,
            "token_id": token.token_id,
            "bytes": utf8,
            "log_prob": _finite(token.log_prob),
            "total_entropy": token.total_entropy,
            "aleatoric_entropy": token.aleatoric_entropy,
            "epistemic": token.epistemic,
            "disagreement": token.disagreement,
            "member_log_probs": [_finite(log_prob) for log_prob in token.member_log_probs],
        }
        for token, (text, utf8) in zip(tokens, texts, strict=True)
    ]


def field_reports(
    message: Message, tokens: Sequence[TokenUncertainty], trace: ChoiceTrace, decode: DecodeToken
) -> list[Json] | None:
    """The `fields` list of the `uncertainty` field; None if the message has no JSON that is found in the tokens."""
    fields = doubtful_fields(message, tokens, trace, lambda token_id: bytes(decode(token_id)[1]))
    if fields is None:
        return None
    return [
        {
            **vars(field),
            "log_prob": _finite(field.log_prob),
            "alternatives": [vars(alternative) for alternative in field.alternatives],
        }
        for field in fields
    ]


def _finite(log_prob: float) -> float:
    return max(log_prob, LOWEST_LOG_PROB)
