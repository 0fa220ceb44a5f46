// The questions of a request for decisions, as a form that grows. In: what is typed. Out: questions as the server reads them.

import { byId, element } from "./elements.js";

const OPTIONS = { choice: "Choices", score: "Levels, the lowest first" };
const HELP = "One a line; after a | comes its description.";

let made = 0;

export function addQuestion(type = "predicate") {
  made += 1;
  const id = `question-${made}`;
  const box = element("fieldset", { class: "panel asked" },
    element("legend", {}, `Question ${byId("questions").childElementCount + 1}`),
    element("div", { class: "grid" },
      element("div", {}, element("label", { for: `${id}-type` }, "Kind"),
        element("select", { id: `${id}-type`, class: "type" },
          ...["predicate", "choice", "score"].map((kind) => element("option", { selected: kind === type }, kind)))),
      element("div", {}, element("label", { for: `${id}-name` }, "Name, if any"),
        element("input", { id: `${id}-name`, class: "name", autocomplete: "off" }))),
    element("label", { for: `${id}-text` }, "What is asked"),
    element("textarea", { id: `${id}-text`, class: "instructions", rows: "2" }),
    element("div", { class: "with-options" },
      element("label", { for: `${id}-options`, class: "options-label" }, "Choices"),
      element("textarea", { id: `${id}-options`, class: "options", rows: "3", "aria-describedby": `${id}-help` }),
      element("p", { class: "note", id: `${id}-help` }, HELP)),
    element("button", { type: "button", click: () => remove(box) }, "Remove this question"));
  box.querySelector(".type").addEventListener("change", () => fit(box));
  fit(box);
  byId("questions").append(box);
  return box;
}

export function askedQuestions() {
  return [...byId("questions").children].map((box) => {
    const of = (name) => box.querySelector(`.${name}`).value.trim();
    const name = of("name");
    const question = { type: of("type"), ...(name ? { name } : {}), instructions: of("instructions") };
    if (question.type === "predicate") return question;
    const [key, value] = question.type === "choice" ? ["choices", "value"] : ["levels", "label"];
    return { ...question, [key]: options(of("options"), value) };
  });
}

function options(text, value) {
  return text.split("\n").map((line) => line.trim()).filter(Boolean).map((line) => {
    const [said, description] = line.split("|").map((part) => part.trim());
    return description ? { [value]: said, description } : { [value]: said };
  });
}

function fit(box) {
  const type = box.querySelector(".type").value;
  box.querySelector(".with-options").hidden = !(type in OPTIONS);
  box.querySelector(".options-label").textContent = OPTIONS[type] ?? "";
}

function remove(box) {
  box.remove();
  [...byId("questions").children].forEach((each, number) => {
    each.querySelector("legend").textContent = `Question ${number + 1}`;
  });
  byId("add-question").focus();
}
