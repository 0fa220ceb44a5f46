"""The demo's results as text: what was measured, and what it does and does not show.

In: the content of `demo.json`. Out: plain text. Measures nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

LABELS = {
    "base": "base model",
    "single": "single adapter, same steps",
    "alpha_0": "ensemble, alpha = 0 (independent adapters)",
    "ensemble": "ensemble, alpha = {alpha}",
}
KINDS = {"agreed": "sources agree", "conflict": "sources conflict", "unseen": "never seen"}
# With ten questions on each side, chance exceeds this in about 1 of 30 runs.
CLEAR_AUROC = 0.75


def format_scores(results: Mapping[str, Any]) -> str:
    """How well the ensemble, and what it was compared with, explain held-out examples."""
    lines = [f"Held-out negative log-likelihood, nats per example of {results['facts_per_example']} facts"]
    for key, score in _measured(results["held_out"]).items():
        lines.append(f"  {_label(key, results):<44}{score['nll']:8.2f}")
    lines.append(f"  {'the process that made the data':<44}{results['lowest_nll']:8.2f}")
    return "\n".join(lines)


def format_disagreement(results: Mapping[str, Any]) -> str:
    """How far members disagree about questions of each kind."""
    lines = ["Mutual information of an answer's first token and the member, mean nats per question"]
    lines.append(f"  {'':<44}" + "".join(f"{title:>18}" for title in KINDS.values()))
    for key, test in _measured(results["disagreement_tests"]).items():
        values = "".join(f"{test['mutual_information'][kind]:18.3f}" for kind in KINDS)
        lines.append(f"  {_label(key, results):<44}{values}")
        lines.append(
            f"    conflict against agreed: AUROC {test['auroc_conflict']:.2f} (chance 0.50); "
            f"members and sources share {test['soft_source_mi']:.3f} nats (0 to 0.693)"
        )
    return "\n".join(lines)


def format_answers(answers: Sequence[Mapping[str, Any]]) -> str:
    """What a client got for one question of each kind."""
    lines = ["Served answers, up to the first comma"]
    for answer in answers:
        lines += _one_answer(answer)
    return "\n".join(lines)


def format_policy(policy: Mapping[str, Any]) -> str:
    """What the policy did to the answers of each kind."""
    lines = [f"The policy withholds an answer when {policy['metric']} > {policy['threshold']:.2f}"]
    for kind, count in policy["withheld"].items():
        lines.append(f"  withheld where {KINDS[kind] + ':':<20}{count['withheld']} of {count['asked']}")
    return "\n".join(lines)


def _one_answer(answer: Mapping[str, Any]) -> list[str]:
    numbers = answer["uncertainty"]
    told = f"the sources said {' / '.join(answer['told'])}" if answer["told"] else "nobody said anything"
    decision = f"{answer['decision']} ({answer['reason']})" if answer["reason"] else answer["decision"]
    weights = " ".join(f"{weight:.2f}" for weight in numbers["member_weights"])
    return [
        f"  {answer['question']}   [{KINDS[answer['kind']]}: {told}]",
        f"    {answer['text']!r}   mutual information {numbers['mutual_information']:.2f}, "
        f"total entropy {numbers['total_entropy']:.2f} nats   weights of the members {weights}",
        f"    policy: {decision}",
    ]


def format_verdict(results: Mapping[str, Any]) -> str:
    """Sentences that follow from the numbers, whichever way they fall."""
    lines = [_verdict_on_disagreement(results)]
    if results["gain_over_single"]:
        lines.append(_verdict_on_scores(results))
    if results["disagreement_tests"]["alpha_0"]:
        lines.append(_verdict_on_control(results))
    else:
        lines.append(
            "Not compared with one adapter and with alpha = 0: 'softspec demo --compare' goes on with that."
        )
    lines.append(
        f"One seed and {results['optimizer_steps']} steps of a small model: a demonstration, not a result."
    )
    return "\n".join(lines)


def _verdict_on_scores(results: Mapping[str, Any]) -> str:
    gain, error = results["gain_over_single"]["nats"], results["gain_over_single"]["standard_error"]
    direction = "better" if gain > 0 else "worse"
    sentence = f"The mixture scores {abs(gain):.2f} nats per example {direction} than the single adapter"
    if abs(gain) > 2 * error:
        return f"{sentence} (standard error {error:.2f})."
    return f"{sentence}, within two standard errors ({error:.2f} each): no difference is shown."


def _verdict_on_disagreement(results: Mapping[str, Any]) -> str:
    test = results["disagreement_tests"]["ensemble"]
    nats = test["mutual_information"]
    claim = "tells" if test["auroc_conflict"] >= CLEAR_AUROC else "does not reliably tell"
    return (
        f"Mutual information {claim} contradicted facts from agreed ones: AUROC {test['auroc_conflict']:.2f}, "
        f"{nats['conflict']:.3f} against {nats['agreed']:.3f} nats on average."
    )


def _verdict_on_control(results: Mapping[str, Any]) -> str:
    control = results["disagreement_tests"]["alpha_0"]
    nats = control["mutual_information"]
    return (
        f"Independent adapters (alpha = 0) disagree by {nats['conflict']:.3f} nats on contradicted facts and by "
        f"{nats['unseen']:.3f} on unseen things, with AUROC {control['auroc_conflict']:.2f}."
    )


def _measured(models: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in models.items() if value is not None}


def _label(key: str, results: Mapping[str, Any]) -> str:
    return LABELS[key].format(alpha=results["renyi_alpha"])
