"""Answers in OpenAI's shape, with their `uncertainty`.

In: a question, and what the members think of its options. Out: the JSON to send. A withheld answer has the shape of a
refusal by OpenAI's own models, and nothing by which its options could be told apart.
"""

from softspec.artefact.calibration import CONFIDENCE
from softspec.maths.answer import OF_DECISION
from softspec.maths.options import OptionsUncertainty
from softspec.server.chat.wire import EXTENSION, Detail, Json
from softspec.server.decisions.request import ChoiceQuestion, PredicateQuestion, Question
from softspec.server.policy.policy import Decision, Policy


def judged(policy: Policy, weighed: OptionsUncertainty, confidence: float | None = None) -> Decision:
    """What the policy decides on one answer, which is judged as a whole: it has no tokens to be counted."""
    if policy.action == "answer":
        return Decision("answer", None, None)
    metrics = {**vars(weighed), CONFIDENCE: confidence}
    value: float = metrics[OF_DECISION.get(policy.metric, policy.metric)]
    reason = policy.crossing(value)
    return Decision("answer" if reason is None else policy.action, reason, None)


def answer_of(
    question: Question,
    weighed: OptionsUncertainty,
    decision: Decision,
    detail: Detail,
    confidence: float | None = None,
) -> Json:
    """One answer with its `uncertainty`."""
    answer = _withheld(question) if decision.action == "abstain" else _answered(question, weighed)
    return {**answer, EXTENSION: _report(weighed, decision, detail, confidence)}


def _withheld(question: Question) -> Json:
    return {"type": "refusal", "name": question.name}


def _answered(question: Question, weighed: OptionsUncertainty) -> Json:
    head = {"type": question.type, "name": question.name}
    probabilities = weighed.probabilities
    if isinstance(question, PredicateQuestion):
        return {**head, "probability": probabilities[0]}
    confidence = max(probabilities)
    if isinstance(question, ChoiceQuestion):
        values = [choice.value for choice in question.choices]
        pairs = [{"value": v, "probability": p} for v, p in zip(values, probabilities, strict=True)]
        chosen = values[probabilities.index(confidence)]
        return {**head, "choice": chosen, "confidence": confidence, "probabilities": pairs}
    levels = [
        {"label": level.label, "value": value, "probability": probability}
        for value, (level, probability) in enumerate(zip(question.levels, probabilities, strict=True))
    ]
    score = sum(value * probability for value, probability in enumerate(probabilities))
    return {**head, "score": score, "confidence": confidence, "probabilities": levels}


def _report(
    weighed: OptionsUncertainty, decision: Decision, detail: Detail, confidence: float | None
) -> Json:
    verdict = {"decision": decision.action, "reason": decision.reason}
    if detail == "none":
        return verdict
    withheld = decision.action == "abstain"
    members = {} if withheld else {"member_probabilities": [list(m) for m in weighed.member_probabilities]}
    return {
        "unit": "nats",
        "total_entropy": weighed.total_entropy,
        "aleatoric_entropy": weighed.aleatoric_entropy,
        "epistemic": weighed.epistemic,
        "disagreement": weighed.disagreement,
        **members,
        "label_mass": weighed.label_mass,
        "confidence": confidence,
        **verdict,
    }
