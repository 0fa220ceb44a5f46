// The second view: questions with known options, and what every member thinks of each.

import { alertOf, clearAlert, say } from "./alerts.js";
import { bar, byId, element, table } from "./elements.js";
import { memberMark } from "./marks.js";
import { count, nats, percent } from "./numbers.js";
import { addQuestion, askedQuestions } from "./questions.js";
import { post } from "./server.js";
import { snippets } from "./snippets.js";
import { askedModel, state, watch } from "./state.js";

const PATH = "v1/decisions";

export function setUpDecisions() {
  addQuestion();
  byId("add-question").addEventListener("click", () => addQuestion("choice").querySelector("select").focus());
  byId("decide").addEventListener("submit", (event) => {
    event.preventDefault();
    decide();
  });
  byId("decide").addEventListener("input", showRequest);
  byId("questions").addEventListener("click", showRequest);
  watch(["model"], showRequest);
}

function request() {
  const threshold = byId("decide-threshold").valueAsNumber || 0;
  const policy = { action: "abstain", metric: "epistemic", threshold };
  const withPolicy = byId("decide-policy").checked && askedModel()?.softspec;
  return {
    model: state.model,
    input: byId("input").value,
    questions: askedQuestions(),
    ...(byId("list-options").checked ? {} : { list_options: false }),
    ...(byId("length-normalise").checked ? { length_normalise: true } : {}),
    ...(withPolicy ? { uncertainty: { policy } } : {}),
  };
}

function showRequest() {
  byId("decide-request").replaceChildren(...snippets(PATH, "decisions", request()));
}

async function decide() {
  clearAlert();
  const body = request();
  byId("decide-send").disabled = true;
  try {
    const { answers } = await post(PATH, body);
    byId("decided").replaceChildren(...answers.map((answer, number) => decided(body.questions[number], answer, number)));
    say(`${count(answers.length, "question")} decided.`);
  } catch (fault) {
    alertOf(fault);
  } finally {
    byId("decide-send").disabled = false;
  }
}

function decided(question, answer, number) {
  const id = `decided-${number}`;
  const told = answer.uncertainty;
  return element("article", { class: "panel", "aria-labelledby": id },
    element("h3", { id }, question.name || question.instructions || `Question ${number + 1}`),
    element("p", {}, element("strong", {}, verdict(answer, told))),
    answer.type === "refusal" ? null : distribution(question.name || `question ${number + 1}`, answer, told),
    element("dl", { class: "facts" }, ...facts(answer, told)));
}

function verdict(answer, told) {
  if (answer.type === "refusal") return `Withheld: ${told.reason}.`;
  if (answer.type === "predicate") return `yes: ${percent(answer.probability)}`;
  return answer.type === "choice" ? `${answer.choice}: ${percent(answer.confidence)}` : `${answer.score.toFixed(2)} expected`;
}

// Every option with its probability under the mixture and under each member.
function distribution(name, answer, told) {
  const options = optionsOf(answer);
  const head = ["option", "probability", ...told.member_probabilities.map((_, k) => memberMark(k, `member ${k}`))];
  const rows = options.map(([option, share], place) => [
    option,
    element("span", { class: "with-bar" }, bar(share, "mixture"), percent(share)),
    ...told.member_probabilities.map((shares, k) =>
      element("span", { class: "with-bar" }, bar(shares[place], `member-${k % 6}`), percent(shares[place]))),
  ]);
  return table(`Options of ${name}`, head, rows);
}

function optionsOf(answer) {
  if (answer.type === "predicate") return [["yes", answer.probability], ["no", 1 - answer.probability]];
  return answer.probabilities.map((each) => [String(each.label ?? each.value), each.probability]);
}

function facts(answer, told) {
  const known = [
    ["epistemic", `${nats(told.epistemic)} nats`],
    ["aleatoric", `${nats(told.aleatoric_entropy)} nats`],
    ["total", `${nats(told.total_entropy)} nats`],
    ["disagreement", percent(told.disagreement)],
    ["label mass", percent(told.label_mass)],
    ["P(correct)", told.confidence === null ? "–" : percent(told.confidence)],
    ["decision", told.decision],
  ];
  return known.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
}
