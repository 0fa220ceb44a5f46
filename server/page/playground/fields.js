// Which field of a JSON answer is doubtful, the most doubtful first; each leads to its tokens.

import { byId, element, table } from "./elements.js";
import { nats, percent } from "./numbers.js";
import { state, watch } from "./state.js";

export function setUpFields(focusToken) {
  watch(["answer", "shown"], () => show(focusToken));
}

function show(focusToken) {
  const answer = state.shown;
  const fields = answer?.report?.fields;
  byId("fields-panel").hidden = fields === undefined;
  if (fields === undefined) return;
  if (fields === null) {
    byId("fields").replaceChildren(element("p", { class: "note" }, "No JSON was found in the answer."));
    return;
  }
  const rows = fields.toSorted((one, other) => other.epistemic - one.epistemic).map((field) => [
    element("button", { type: "button", class: "link", click: () => focusToken(answer, field.first_token - 1) },
      field.path || "the whole answer"),
    valueOf(answer, field),
    nats(field.epistemic),
    alternatives(field),
  ]);
  byId("fields").replaceChildren(table("Fields of the answer", ["field", "value", "epistemic, nats", "else"], rows));
}

// A field's value; of JSON that breaks off, the text of the tokens that spell it.
function valueOf(answer, field) {
  let text;
  try {
    text = JSON.stringify(at(JSON.parse(answer.text), field.path));
  } catch {
    const first = field.first_token - 1;
    text = answer.spelled.slice(first, first + field.num_tokens).join("");
  }
  return element("code", {}, text);
}

// What a JSON pointer (RFC 6901) leads to.
function at(document, path) {
  const keys = path.split("/").slice(1).map((key) => key.replaceAll("~1", "/").replaceAll("~0", "~"));
  return keys.reduce((value, key) => value[key], document);
}

function alternatives(field) {
  if (field.alternatives.length === 0) return "–";
  return element("ul", { class: "plain" }, ...field.alternatives.map((each) =>
    element("li", {}, element("code", {}, each.text + (each.complete ? "" : "…")),
      ` ${percent(each.weight)}, member ${each.members.join(" and ")}`)));
}
