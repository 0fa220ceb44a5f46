// One question and its answer as they are shown: tokens where there are numbers, plain text where there are none.

import { element } from "./elements.js";
import { wouldEndAt } from "./policy.js";
import { state, watch } from "./state.js";
import { TokenList } from "./tokens.js";

const NOTES = {
  waiting: "…",
  growing: "",
  finished: "",
  stopped: "You stopped this answer.",
  broken: "The answer broke off here; what came is kept.",
};

export class Turn {
  constructor(question, answer, body) {
    this.question = question;
    this.answer = answer;
    this.body = body;
    this.tokens = new TokenList(answer, "Tokens of the answer");
    this.plain = element("p", { class: "said" });
    this.note = element("p", { class: "note" });
    this.shown = element("div", { class: "answer" }, element("span", { class: "who" }, answer.model),
      this.tokens.element, this.plain, this.note);
    this.element = element("article", { class: "turn", "aria-label": `${answer.model} is asked: ${question}` },
      element("p", { class: "question" }, element("span", { class: "who" }, "You"), question),
      this.shown);
    this.show();
  }

  show() {
    const { answer } = this;
    this.shown.setAttribute("aria-busy", String(!answer.isOver));
    this.tokens.show(wouldEndAt(answer));
    // Of a withheld answer the refusal stands beside the tokens that came before it.
    const hasTokens = answer.tokens.length > 0;
    this.plain.textContent = answer.refusal ?? (hasTokens ? "" : answer.text);
    this.plain.classList.toggle("refusal", answer.refusal !== null);
    this.note.textContent = [NOTES[answer.phase], this.about()].filter(Boolean).join(" ");
  }

  about() {
    const { answer } = this;
    if (answer.upstream) return `Answered by the upstream “${answer.upstream}” (${answer.answeredBy}): its tokens have no numbers.`;
    if (answer.refusal !== null) return "Withheld: this turn is no part of the conversation that is sent.";
    if (answer.isOver && answer.finish === "length") return "Cut off at the most tokens.";
    if (answer.isOver && !answer.ensemble) return "A single model: its tokens have no numbers.";
    return "";
  }
}

export function setUpTurns() {
  watch(["answer", "shown", "policy"], () => state.turns.forEach((turn) => turn.show()));
  watch(["token", "shown"], () => state.turns.forEach((turn) => turn.tokens.mark()));
  watch(["shade"], () => state.turns.forEach((turn) => turn.tokens.shade()));
}
