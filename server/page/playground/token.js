// One token in numbers: what the mixture and each member gave it, and how much each was believed before and after.

import { bar, byId, element, table } from "./elements.js";
import { logProb, nats, percent } from "./numbers.js";
import { colourOf, memberMark } from "./marks.js";
import { changed, state, watch } from "./state.js";

const PAUSE_MS = 400; // whoever moves fast hears of the last token only

let speaking = null;
let shown = null; // the chosen token that was shown last

export function setUpToken() {
  byId("token-close").addEventListener("click", () => {
    state.pointed = state.chosen = null;
    changed("token");
  });
  watch(["token", "answer", "shown"], show);
  show();
}

function show() {
  const at = state.pointed ?? state.chosen;
  byId("token").classList.toggle("empty", at === null);
  if (at === null) {
    byId("token-title").textContent = "Token";
    byId("token-details").replaceChildren(element("p", { class: "note" },
      "Point at a token, or reach it with Tab and the arrow keys: here stands what each member gave it."));
    return;
  }
  const { answer, number } = at;
  const token = answer.tokens[number];
  byId("token-title").textContent = `Token ${number + 1} of ${answer.tokens.length}`;
  byId("token-details").replaceChildren(
    element("p", {}, element("code", { class: "quoted" }, answer.spelled[number] || token.token)),
    members(answer, number),
    element("dl", { class: "facts" }, ...facts(token)),
  );
  if (state.pointed === null) speak(answer, number);
  // On a phone these numbers may have come to lie over the token.
  if (at.option && at.option !== shown) at.option.scrollIntoView({ block: "nearest" });
  shown = at.option ?? shown;
}

function members(answer, number) {
  const before = answer.belief.steps[number];
  const after = answer.belief.steps[number + 1];
  const rows = answer.tokens[number].member_log_probs.map((log, member) => {
    const share = Math.exp(logProb(log));
    return [
      memberMark(member, `member ${member}`),
      element("span", { class: "with-bar" }, bar(share, colourOf(member)), percent(share)),
      percent(Math.exp(before[member])),
      percent(Math.exp(after[member])),
    ];
  });
  return table("Members' probabilities of this token", ["member", "probability", "belief before", "after"], rows);
}

function facts(token) {
  const told = [
    ["log-probability", nats(token.log_prob)],
    ["epistemic", `${nats(token.epistemic)} nats`],
    ["aleatoric", `${nats(token.aleatoric_entropy)} nats`],
    ["total", `${nats(token.total_entropy)} nats`],
    ["disagreement", percent(token.disagreement)],
  ];
  return told.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
}

// The name of a token says its own numbers; of the members a screen reader hears after a pause.
function speak(answer, number) {
  clearTimeout(speaking);
  speaking = setTimeout(() => {
    const shares = answer.tokens[number].member_log_probs.map((log, k) => `${k}: ${percent(Math.exp(logProb(log)))}`);
    const text = `Members ${shares.join(", ")}`;
    if (byId("token-spoken").textContent !== text) byId("token-spoken").textContent = text;
  }, PAUSE_MS);
}
