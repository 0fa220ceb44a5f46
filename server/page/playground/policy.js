// A policy to try: what it would have done with the answer that is shown, and whether requests take it along.

import { byId, element } from "./elements.js";
import { course, judge, METRICS } from "./judge.js";
import { count, nats, percent } from "./numbers.js";
import { topOf } from "./shades.js";
import { askedModel, changed, state, watch } from "./state.js";

export function setUpPolicy() {
  byId("policy-metric").append(...Object.keys(METRICS).map((name) => element("option", {}, name)));
  byId("policy-threshold").value = 0.35;
  byId("policy-slider").addEventListener("input", () => {
    byId("policy-threshold").value = byId("policy-slider").value;
  });
  byId("policy").addEventListener("input", () => changed("policy"));
  byId("policy").addEventListener("submit", (event) => event.preventDefault());
  watch(["policy", "answer", "shown", "model"], show);
}

// The policy in the form, as the server reads one.
export function policy() {
  const { action, upstream, ...rule } = {
    action: byId("policy-action").value,
    metric: byId("policy-metric").value,
    threshold: byId("policy-threshold").valueAsNumber || 0,
    min_tokens: byId("policy-min-tokens").valueAsNumber || 1,
    upstream: byId("policy-upstream").value.trim(),
  };
  return { action, ...rule, ...(action === "route" && upstream ? { upstream } : {}) };
}

export function sentPolicy() {
  return byId("policy-sent").checked ? policy() : undefined;
}

// Where the policy would have ended the answer that is shown; null where it would not.
export function wouldEndAt(answer) {
  return answer === state.shown && answer.isOver && answer.tokens.length > 0 ? judge(policy(), answer).at : null;
}

function show() {
  const asked = policy();
  const isShare = METRICS[asked.metric];
  byId("policy-route").hidden = asked.action !== "route";
  byId("policy-unit").textContent = isShare ? "a share" : "nats";
  const slider = byId("policy-slider");
  slider.max = mostOf(asked.metric, isShare);
  slider.value = asked.threshold;
  slider.setAttribute("aria-valuetext", isShare ? percent(asked.threshold) : `${nats(asked.threshold)} nats`);
  byId("policy-verdict").textContent = verdict(asked, state.shown, isShare ? percent : nats);
}

// As far as the slider goes: to the bound of the metric, or to the largest value that came.
function mostOf(metric, isShare) {
  const numMembers = state.shown?.ensemble?.num_members ?? askedModel()?.softspec?.num_members ?? 2;
  const most = isShare ? 1 : topOf(numMembers);
  const values = state.shown ? course(metric, state.shown) : [];
  return (Math.ceil(20 * values.reduce((top, value) => Math.max(top, value), most)) / 20).toFixed(2);
}

function verdict(asked, answer, written) {
  if (!answer?.ensemble) return "Ask an ensemble first: its answer is judged here.";
  if (!answer.isOver) return "The answer is still coming.";
  const { action, at, value, late } = judge(asked, answer);
  const known = count(answer.tokens.length, "token that came", "tokens that came");
  if (at === null) {
    if (answer.decidedAt) return `The server ended this answer at token ${answer.decidedAt}; by the ${known} nothing ends it sooner.`;
    const values = course(asked.metric, answer).slice(asked.min_tokens - 1);
    const most = values.length > 0 ? `, its ${asked.metric} at most ${written(Math.max(...values))}` : "";
    return `Would have been answered: judged by the ${known}${most}.`;
  }
  const done = action === "route" ? "routed" : "refused";
  const why = `${asked.metric} ${written(value)} is above ${written(asked.threshold)}`;
  return `Would have been ${done} at token ${at}: ${why}.${late ? " Too late to route a stream, of which 16 tokens are held." : ""}`;
}
