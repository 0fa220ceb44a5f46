"""What each number of a report means, in two sentences each.

In: the name of a metric or of a section. Out: words. A metric without words here fails a test.
"""

SECTIONS = {
    "nll": (
        "How many nats the right answer costs per example, by the mixture and by its members taken singly: "
        "less is better. Where the mixture is well below its members they share the work; where both are "
        "alike one adapter would do."
    ),
    "load": (
        "Each member's mean responsibility for the examples of a step, which sums to 1. A line that falls "
        "to 0 and stays there is a member that has starved, one that rises to 1 a member that has taken "
        "all."
    ),
    "routing": (
        "How many members an example is shared by: K is no routing at all, 1 is one member for each "
        "example. It falls where members specialise, and says nothing of whether they share the examples "
        "evenly, which load does."
    ),
    "gradients": (
        "How strongly each member is pulled in a step, before clipping. Bursts tell of a learning rate that"
        " is too high, a line near 0 of a member that learns nothing any more."
    ),
    "accuracies": "The share of preferences of a step that each member gets right. One half is chance.",
    "metrics": (
        "Every number has the middle 95 % of what it comes to on resampled data, and n, the rows that enter"
        " it. Two numbers whose intervals overlap may still differ: compare paired differences for that."
    ),
    "baselines": (
        "The ensemble's number minus the other model's, on the same resampled rows. Where the interval has "
        "0 in it, these data do not tell the two apart."
    ),
    "reliability": (
        "Of the answers given with a confidence, how many are right: on the line confidence is what it "
        "says, below it the model is too sure. Bars are 95 % intervals of the share (Wilson), where rows "
        "that belong together count as one."
    ),
    "risk": (
        "The error rate among the share of answers the model is surest of: a curve that falls to the left "
        "means its doubt tells wrong answers from right ones, a flat one that it does not. The band is the "
        "middle 95 % of resampled data, and the area below the curve is AURC."
    ),
    "information": (
        "How far rows make members disagree, for each kind of rows: 0 is agreement, log K the most there "
        "can be. Rows on which sources contradict each other should lie to the right, rows on which they "
        "agree at 0."
    ),
    "responsibilities": (
        "Which member explains the answers of which source, each row summing to 1; the last row is the mean"
        " over all. A row unlike the last one is a source with members of its own; all rows alike means "
        "that members know nothing of sources."
    ),
    "similarity": (
        "How far apart two members' forecasts are on average (Jensen-Shannon divergence): 0 is the same, "
        "0.693 nats never the same choice. Members that are alike in a pair add nothing to each other."
    ),
    "contested": (
        "The rows on which the choice depends most on which member is asked. Marked are the words in which "
        "a member's answer differs from the mixture's."
    ),
    "contested_generation": (
        "The rows of which the answer tells most about its member. Marked are the words in which the answer"
        " and a reference differ, and log P is the log-probability of a whole answer, in nats."
    ),
    "calibration": (
        "What the ensemble itself says of being right when it serves, from `softspec calibrate`. A "
        "threshold keeps its target for rows like those of calibration, with the probability that stands "
        "beside it."
    ),
    "red_team": (
        "For each prompt, how often each member refuses when it answers by itself, and how much knowing the"
        " member tells about that (semantic mutual information, nats). Chance alone makes some of it: what "
        "exceeds the 95 % quantile of answers dealt to members at random is marked."
    ),
    "variance": (
        "How far the members' refusal rates are apart on a prompt, as a variance, meant over prompts: 0 is "
        "one behaviour, 0.25 half of the members always refusing and half never. It is above 0 by chance "
        "too, so its mean under shuffling stands beside it."
    ),
}
"""Section -> what it shows."""

UNCERTAINTY = {
    "epistemic": "what members disagree about",
    "total": "the mixture's whole uncertainty",
    "aleatoric": "what members are unsure of by themselves",
    "max_probability": "how far the likeliest choice is from certain",
    "mutual_information": "what the answer tells about its member",
    "surprise": "how unlikely the answer was per token",
}
METRICS = {
    "nll": (
        "What the right answer costs, in nats: less is better. A uniform guess among C choices costs log C."
    ),
    "nll_sequence": (
        "What the whole text of the right choice costs, with its end, in nats. Unlike nll it also pays for "
        "what is given to texts that are no choice."
    ),
    "nll_per_token": (
        "What a token of the likeliest reference answer costs, in nats. It compares answers of different "
        "lengths."
    ),
    "accuracy": (
        "The share of rows whose likeliest choice is right. Where people disagree it is the share of them "
        "that agree with the model."
    ),
    "exact_match": (
        "The share of answers that are a reference, letter by letter. Another wording of the same counts as"
        " wrong."
    ),
    "normalised_match": (
        "The share of answers that are a reference but for case, punctuation and articles. Another wording "
        "of the same still counts as wrong."
    ),
    "brier": (
        "The squared distance between forecast and truth, 0 to 2: less is better. It forgives a confident "
        "mistake more than nll does."
    ),
    "kl_to_votes": "How far the forecast is from what people voted, in nats. 0 is the people's own shares.",
    "member_nll": (
        "What the right answer costs a single member, on average, in nats. The mixture's nll is never worse"
        " than that."
    ),
    "member_accuracy": (
        "How often a single member is right, on average. The distance to accuracy is what mixing gains."
    ),
    "total": "The mixture's whole uncertainty, in nats. It is aleatoric plus epistemic.",
    "aleatoric": (
        "How unsure members are by themselves, in nats. More members or more training of this kind do not "
        "remove it."
    ),
    "epistemic": (
        "How far members disagree, in nats: mutual information of answer and member. It is 0 where all say "
        "the same, however unsure they are."
    ),
    "mutual_information": (
        "How much an answer tells about the member behind it, in nats, at most log K. It is 0 where all "
        "members find the answer equally likely."
    ),
    "reverse_information": (
        "How far the mixture is from each member, seen from the mixture, in nats. It grows without bound "
        "where a member rules out what others say."
    ),
    "quadratic_epistemic": (
        "The variance of members' probabilities. It is the epistemic part of the Brier score."
    ),
    "disagreement": (
        "The share of members whose first choice is not the mixture's. It ignores how sure they are."
    ),
    "diversity": (
        "The mean Jensen-Shannon divergence of two members, in nats. 0 is the same forecast, 0.693 never "
        "the same choice."
    ),
    "ece": (
        "The mean distance between confidence and accuracy. A perfect forecaster does not reach 0 either: "
        "compare its floor."
    ),
    "epistemic_ratio_conflict": (
        "How much more members disagree where sources conflict than where they agree. 1 is no difference."
    ),
    "epistemic_share": (
        "The part of the model's uncertainty that is disagreement of members, where several people judged. "
        "Compare annotator_share, the part of the people's disagreement that depends on who they are."
    ),
    "annotator_share": (
        "The part of what people say that depends on who says it. It is a property of the data, not of the "
        "model."
    ),
    "effective_members": (
        "How many members share the answers, by the evenness of their load. K is even, 1 one member for all."
    ),
    "routing_perplexity": (
        "How many members an answer is shared by. K is no routing, 1 one member for each answer."
    ),
    "specialisation": (
        "How much an answer tells about the member responsible for it, in nats. 0 is members that are "
        "alike, log K one member for each answer."
    ),
    "soft_source_mi": (
        "How much a source tells about the members responsible for it, in nats. Chance makes some of it, so"
        " its value under shuffled sources and a p-value stand beside it."
    ),
    "nmi": (
        "How well leading members and sources match, 0 to 1. It is held down where several members share a "
        "source."
    ),
    "homogeneity": (
        "How much of the source the leading member tells, 0 to 1. Several members may share a source."
    ),
    "purity": (
        "The share of answers whose source is the commonest of their leading member. Many small members "
        "raise it by themselves."
    ),
}
FAMILIES = {
    "aurc_": (
        "The error rate averaged over all shares that could be answered, the surest first: less is better. "
        "Ranked by {}."
    ),
    "e_aurc_": "The same area less that of the best possible ranking: 0 is perfect. Ranked by {}.",
    "prr_": "Where the ranking stands between chance (0) and perfect (1). Ranked by {}.",
    "auroc_conflict_": (
        "How often a row on which sources conflict is ranked above one on which they agree: 0.5 is chance. "
        "Ranked by {}."
    ),
    "auroc_ood_": (
        "How often a row unlike the training data is ranked above another: 0.5 is chance. Ranked by {}."
    ),
    "spearman_": "How well the ranking follows people's disagreement, -1 to 1. Ranked by {}.",
}
"""Beginning of a name -> what is meant, for each uncertainty."""
NEXT = {
    "next_nll_": (
        "What the next answer of a source costs in nats when {} of its other answers are known. The drop "
        "against none is what knowing the person is worth."
    ),
    "next_gain_": (
        "How many nats cheaper the next answer of a source is when {} of its other answers are known. 0 "
        "means that members tell nothing of sources."
    ),
}


def meaning(metric: str) -> str | None:
    """Two sentences on a metric of `softspec evaluate`; None for one that is not known here."""
    if metric in METRICS:
        return METRICS[metric]
    for beginning, words in FAMILIES.items():
        if metric.startswith(beginning) and (kind := metric.removeprefix(beginning)) in UNCERTAINTY:
            return words.format(UNCERTAINTY[kind])
    for beginning, words in NEXT.items():
        if metric.startswith(beginning):
            return words.format(metric.removeprefix(beginning))
    return None
