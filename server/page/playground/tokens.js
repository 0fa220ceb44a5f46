// The tokens of one answer, each shaded by its number; one tab stop, arrow keys within.
// In: an answer that grows. Out: a list of options, and in the state the token that is pointed at or chosen.

import { element } from "./elements.js";
import { nats } from "./numbers.js";
import { STEPS, shadeOf } from "./shades.js";
import { changed, state } from "./state.js";

const SHADES = Array.from({ length: STEPS }, (_, step) => `shade-${step}`);
const MOVES = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };

export class TokenList {
  constructor(answer, label) {
    this.answer = answer;
    this.options = [];
    this.element = element("div", {
      class: "tokens",
      "aria-label": label,
      keydown: (event) => this.move(event),
      // Not pointerover: the page may scroll below a pointer that rests, while the keyboard moves on.
      pointermove: (event) => this.point(event.target),
      pointerleave: () => this.point(null),
      focusin: (event) => this.choose(event.target),
      click: (event) => event.target.focus(),
    });
  }

  // Add the tokens that came since the last time, and mark all as they now are.
  show(decidedAt) {
    const { answer, element: list } = this;
    for (let number = this.options.length; number < answer.tokens.length; number += 1) {
      this.options.push(this.option(number));
      list.append(this.options[number]);
    }
    if (this.options.length > 0) list.setAttribute("role", "listbox");
    this.shade();
    let before = 0;
    const end = answer.textEndsAt;
    for (const [number, option] of this.options.entries()) {
      option.classList.toggle("outside", before >= end);
      const decides = number + 1 === decidedAt;
      option.classList.toggle("decides", decides);
      if (decides) option.setAttribute("aria-description", "here the policy would have ended the answer");
      else option.removeAttribute("aria-description");
      before += answer.spelled[number].length;
    }
  }

  shade() {
    for (const [number, option] of this.options.entries()) {
      const token = this.answer.tokens[number];
      option.classList.remove(...SHADES);
      option.classList.add(SHADES[shadeOf(token[state.shade], this.answer.ensemble.num_members)]);
    }
  }

  mark() {
    for (const option of this.options) option.setAttribute("aria-selected", String(option === state.chosen?.option));
  }

  option(number) {
    const token = this.answer.tokens[number];
    const text = this.answer.spelled[number];
    const kinds = [text === "" ? "part" : "", /^\s*\n\s*$/.test(text) ? "line-end" : ""];
    const numbers = `epistemic ${nats(token.epistemic)}, aleatoric ${nats(token.aleatoric_entropy)} nats`;
    return element("span", {
      class: ["token", ...kinds].join(" ").trim(),
      role: "option",
      tabindex: number === 0 ? "0" : "-1",
      "aria-selected": "false",
      "aria-label": `token ${number + 1}, ${spoken(text)}, ${numbers}`,
    }, text);
  }

  point(target) {
    const number = this.options.indexOf(target);
    if (state.pointed?.answer === this.answer && state.pointed.number === number) return;
    state.pointed = number < 0 ? null : { answer: this.answer, number };
    changed("token");
  }

  choose(target) {
    const number = this.options.indexOf(target);
    if (number < 0) return;
    for (const option of this.options) option.tabIndex = option === target ? 0 : -1;
    state.chosen = { answer: this.answer, number, option: target };
    state.pointed = null;
    changed("token");
    if (state.shown !== this.answer) {
      state.shown = this.answer;
      changed("shown");
    }
  }

  move(event) {
    const number = this.options.indexOf(event.target);
    if (number < 0 || !(event.key in MOVES) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.focus(Math.max(0, Math.min(this.options.length - 1, number + MOVES[event.key])));
  }

  focus(number) {
    this.options[number]?.focus();
  }
}

function spoken(text) {
  if (text === "") return "a part of a character";
  return text.trim() === "" ? "white space" : `“${text.trim()}”`;
}
