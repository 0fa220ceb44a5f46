// The belief in each member while an answer grows, and how far it has moved: the server's arithmetic, in the browser.
// In: the prior's logarithms and the members' log-probabilities of each token. Out: weights, and nats.

import { logProb } from "./numbers.js";

// A sum that keeps what rounding cuts off (Neumaier 1974), as the server's does.
export class Sum {
  #sum = 0;
  #cut = 0;

  add(number) {
    if (!Number.isFinite(number)) {
      this.#sum += number;
      return this.#sum;
    }
    const total = this.#sum + number;
    if (Number.isFinite(total)) {
      this.#cut += Math.abs(this.#sum) >= Math.abs(number) ? this.#sum - total + number : number - total + this.#sum;
    }
    this.#sum = total;
    return this.#sum + this.#cut;
  }
}

// log w_k + log p_k, normalised over members; an answer that no member can give says nothing about them.
export function posterior(logWeights, logLikelihoods) {
  const joint = logWeights.map((weight, k) => weight + logLikelihoods[k]);
  const top = Math.max(...joint);
  if (top === -Infinity) return logWeights;
  const evidence = top + Math.log(joint.reduce((sum, each) => sum + Math.exp(each - top), 0));
  return joint.map((each) => each - evidence);
}

// KL(posterior || prior), nats.
export function information(after, before) {
  const terms = after.map((each, k) => (each === -Infinity ? 0 : Math.exp(each) * (each - before[k])));
  return Math.max(0, terms.reduce((sum, each) => sum + each, 0));
}

// The members' logarithms of weights at each prefix of an answer; the first are the prior's.
export class Belief {
  constructor(logWeights, rule) {
    this.prior = logWeights.map(logProb);
    this.rule = rule;
    this.steps = [this.prior];
    this.information = [0];
    this.#sums = logWeights.map(() => new Sum());
  }

  #sums;
  #told = new Sum();

  add(memberLogProbs) {
    const token = memberLogProbs.map(logProb);
    if (this.rule === "fixed") {
      this.steps.push(this.prior);
      this.information.push(this.#told.add(information(posterior(this.prior, token), this.prior)));
      return;
    }
    const after = posterior(this.prior, this.#sums.map((sum, k) => sum.add(token[k])));
    this.steps.push(after);
    this.information.push(information(after, this.prior));
  }
}
