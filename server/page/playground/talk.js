// The conversation: questions, answers as they grow, and the form that asks.

import { alertOf, clearAlert, say } from "./alerts.js";
import { Answer } from "./answer.js";
import { byId } from "./elements.js";
import { clearMembers } from "./members.js";
import { count, nats } from "./numbers.js";
import { stream } from "./server.js";
import { requestFor } from "./settings.js";
import { askedModel, changed, state } from "./state.js";
import { decisionOf } from "./summary.js";
import { Turn } from "./turn.js";

let leaving = null; // ends the request that is on its way

export function setUpTalk() {
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  byId("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask();
  });
  byId("stop").addEventListener("click", () => leaving?.abort());
  byId("clear").addEventListener("click", clear);
}

// What the next request would be.
export function nextRequest() {
  return requestFor([...said(), { role: "user", content: byId("question").value.trim() || "…" }]);
}

async function ask() {
  const question = byId("question").value.trim();
  if (!question || leaving) return;
  clearAlert();
  let body;
  try {
    body = requestFor([...said(), { role: "user", content: question }]);
  } catch {
    alertOf({ message: "The JSON schema is no JSON: correct it in the settings, or leave it out." });
    return;
  }
  clearMembers();
  byId("question").value = "";
  const turn = new Turn(question, new Answer(state.model, askedModel()?.softspec), body);
  state.turns.push(turn);
  state.shown = turn.answer;
  state.pointed = state.chosen = null;
  byId("conversation").append(turn.element);
  changed("shown");
  await listen(turn);
}

async function listen(turn) {
  const { answer, body } = turn;
  busy(new AbortController());
  try {
    const begun = (requestId) => (answer.requestId = requestId);
    for await (const chunk of stream("v1/chat/completions", body, leaving.signal, begun)) {
      answer.take(chunk);
      changed("answer");
    }
    answer.end("finished");
    say(heard(answer));
  } catch (fault) {
    answer.end(leaving.signal.aborted ? "stopped" : "broken");
    if (!leaving.signal.aborted) failed(turn, fault);
  } finally {
    busy(null);
    changed("answer");
  }
}

// Nothing came: the question goes back to where it was written. Something came: it stays.
function failed(turn, fault) {
  alertOf(fault);
  if (turn.answer.text !== "" || turn.answer.tokens.length > 0) return;
  state.turns.pop();
  turn.element.remove();
  byId("question").value = byId("question").value || turn.question;
  state.shown = state.turns.at(-1)?.answer ?? null;
  changed("shown");
}

function busy(controller) {
  leaving = controller;
  byId("send").disabled = byId("clear").disabled = controller !== null;
  byId("stop").disabled = controller === null;
}

function clear() {
  state.turns = [];
  state.shown = state.pointed = state.chosen = null;
  byId("conversation").replaceChildren();
  clearMembers();
  clearAlert();
  changed("shown");
  byId("question").focus();
}

// The messages so far. A question whose answer was withheld is no part of them, as models expect an answer to each.
function said() {
  return state.turns.filter((turn) => turn.answer.text !== "" && turn.answer.refusal === null).flatMap((turn) => [
    { role: "user", content: turn.question },
    { role: "assistant", content: turn.answer.text },
  ]);
}

function heard(answer) {
  if (!answer.report) return `${answer.model} has answered: ${answer.text}`;
  const information = `mutual information ${nats(answer.report.mutual_information)} nats`;
  return `${decisionOf(answer)} ${count(answer.tokens.length, "token")}, ${information}. ${answer.refusal ?? answer.text}`;
}
