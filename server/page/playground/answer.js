// One streamed answer as far as it has come: text, tokens with their numbers, and what was decided.
// In: the chunks of a stream. Out: fields for the parts that show them. Knows no elements.

import { Belief } from "./belief.js";

export class Answer {
  constructor(model, ensemble) {
    this.model = model;
    this.ensemble = ensemble; // what /v1/models says of it; undefined for a member or the base
    this.text = "";
    this.refusal = null;
    this.tokens = [];
    this.spelled = []; // the text of each token; empty where a character is not yet whole
    this.belief = new Belief(ensemble?.log_weights ?? [], ensemble?.weights_rule);
    this.report = null; // the numbers of the whole answer
    this.finish = null;
    this.answeredBy = model;
    this.requestId = null;
    this.phase = "waiting"; // then growing, and at last finished, stopped or broken
    this.decoder = new TextDecoder();
  }

  take(chunk) {
    this.phase = "growing";
    this.answeredBy = chunk.model ?? this.answeredBy;
    for (const choice of chunk.choices) {
      this.text += choice.delta?.content ?? "";
      this.refusal = choice.delta?.refusal ?? this.refusal;
      this.finish = choice.finish_reason ?? this.finish;
      const { tokens = [], ...report } = choice.uncertainty ?? {};
      for (const token of tokens) {
        this.tokens.push(token);
        this.spelled.push(this.decoder.decode(new Uint8Array(token.bytes), { stream: true }));
        this.belief.add(token.member_log_probs);
      }
      if (report.decision) this.report = report;
    }
  }

  end(phase) {
    this.phase = phase;
  }

  get isOver() {
    return this.phase !== "waiting" && this.phase !== "growing";
  }

  get decision() {
    return this.report?.decision ?? null;
  }

  get decidedAt() {
    return this.report?.decided_at ?? null;
  }

  get upstream() {
    return this.report?.upstream ?? null;
  }

  // The belief after each token from the prior on, {token, weights}. Of a withheld answer the last tokens did not come,
  // but its numbers tell where the belief had moved with them.
  get course() {
    const known = this.belief.steps.map((step, token) => ({ token, weights: step.map(Math.exp) }));
    const { num_tokens: judged, member_weights: weights } = this.report ?? {};
    return judged > this.tokens.length ? [...known, { token: judged, weights }] : known;
  }

  // Where the tokens' text goes beyond the answer's, as the token that ends a turn does. Of an answer that was parsed
  // into another form, such as a tool call, nobody can tell.
  get textEndsAt() {
    const isKnown = this.isOver && this.text !== "" && this.spelled.join("").startsWith(this.text);
    return isKnown ? this.text.length : Infinity;
  }
}
