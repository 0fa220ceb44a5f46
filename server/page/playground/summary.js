// All numbers of the whole answer, and what was decided.

import { byId, element, table } from "./elements.js";
import { memberMark } from "./marks.js";
import { nats, percent } from "./numbers.js";
import { state, watch } from "./state.js";

const SHARES = ["disagreement", "max_disagreement", "member_weights", "confidence"];
const PLAIN = ["unit", "num_tokens", "seed", "decision", "reason", "decided_at", "upstream"];

export function setUpSummary() {
  watch(["answer", "shown"], show);
  show();
}

// What was done with an answer, in a sentence.
export function decisionOf(answer) {
  const { decision, reason, upstream } = answer.report;
  const done = { answer: "Answered", abstain: "Withheld", route: `Answered by the upstream “${upstream}”` }[decision];
  return reason ? `${done}: ${reason}.` : `${done}: no policy objected.`;
}

function show() {
  const answer = state.shown;
  if (!answer?.report) {
    byId("summary").replaceChildren(element("p", { class: "note" }, "The numbers come with the end of an ensemble's answer."));
    return;
  }
  const { fields, ...numbers } = answer.report;
  const rows = Object.entries(numbers).map(([name, value]) => [element("code", {}, name), written(name, value)]);
  byId("summary").replaceChildren(
    element("p", {}, element("strong", {}, decisionOf(answer))),
    table("Numbers of the whole answer", ["field", "value"], [...rows, [element("code", {}, "x-request-id"), long(answer.requestId ?? "–")]]),
  );
}

function long(text) {
  return element("span", { class: "long" }, text);
}

function written(name, value) {
  if (Array.isArray(value)) {
    return element("span", { class: "of-members" }, ...value.map((each, k) => memberMark(k, written(name, each))));
  }
  if (value === null) return "–";
  if (PLAIN.includes(name)) return long(String(value));
  return SHARES.includes(name) ? percent(value) : nats(value);
}
