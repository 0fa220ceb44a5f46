// A policy applied to an answer that has come, as the server applies it to one that grows.
// In: an answer's tokens and belief, and a policy. Out: the first prefix that the policy objects to, if there is one.

import { Sum } from "./belief.js";

// Metric -> whether it is a share, not nats.
export const METRICS = {
  mutual_information: false,
  max_epistemic: false,
  max_disagreement: true,
  epistemic: false,
  disagreement: true,
  total_entropy: false,
  aleatoric_entropy: false,
};

// So many tokens of a stream the server holds back for an answer that may be routed.
const HELD = 16;

// The metric of every prefix, from one token on.
export function course(metric, answer) {
  if (metric === "mutual_information") return answer.belief.information.slice(1);
  const numbers = answer.tokens.map((token) => token[metric.replace("max_", "")]);
  if (metric.startsWith("max_")) {
    let largest = -Infinity;
    return numbers.map((number) => (largest = Math.max(largest, number)));
  }
  const sum = new Sum();
  return numbers.map((number, before) => sum.add(number) / (before + 1));
}

export function judge(policy, answer) {
  const values = course(policy.metric, answer);
  const at = values.findIndex((value, before) => before + 1 >= policy.min_tokens && value > policy.threshold);
  if (at < 0) return { action: "answer", at: null, value: null };
  const late = policy.action === "route" && at + 1 > HELD;
  return { action: late ? "abstain" : policy.action, at: at + 1, value: values[at], late };
}
