// What each member says alone, side by side: the same request, asked of each.

import { Answer } from "./answer.js";
import { byId, element } from "./elements.js";
import { memberMark } from "./marks.js";
import { stream } from "./server.js";
import { changed, state, watch } from "./state.js";

let leaving = null; // ends the requests that are on their way

export function setUpMembers() {
  byId("ask-members").addEventListener("click", ask);
  byId("stop-members").addEventListener("click", () => leaving?.abort());
  watch(["answer", "shown", "members"], () => {
    byId("ask-members").disabled = leaving !== null || !(state.shown?.isOver && state.shown.ensemble);
    byId("stop-members").disabled = leaving === null;
  });
}

export function clearMembers() {
  leaving?.abort();
  byId("members").replaceChildren();
}

async function ask() {
  const turn = state.turns.find((each) => each.answer === state.shown);
  const names = state.models.map((model) => model.id).filter((id) => id.startsWith(`${turn.answer.model}/member-`));
  leaving = new AbortController();
  changed("members");
  const columns = names.map((name, k) => column(k, name));
  byId("members").replaceChildren(element("div", { class: "side-by-side" }, ...columns.map((each) => each.element)));
  await Promise.all(columns.map((each, k) => answer(names[k], turn.body, each, leaving.signal)));
  leaving = null;
  changed("members");
}

function column(member, name) {
  const said = element("p", { class: "said" });
  const note = element("p", { class: "note" }, "…");
  const title = `said-by-${member}`;
  const all = element("article", { "aria-labelledby": title },
    element("h4", { id: title }, memberMark(member, name)), said, note);
  return { element: all, said, note };
}

async function answer(name, { uncertainty, ...body }, { said, note }, signal) {
  const own = new Answer(name);
  try {
    for await (const chunk of stream("v1/chat/completions", { ...body, model: name }, signal)) {
      own.take(chunk);
      said.textContent = own.text;
    }
    note.textContent = own.finish === "length" ? "cut off at the most tokens" : "";
  } catch (fault) {
    note.textContent = signal.aborted ? "stopped" : fault.message;
  }
}
