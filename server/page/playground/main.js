// The page, put together: who sets up what, and which of the two views is shown.

import { byId } from "./elements.js";
import { setUpDecisions } from "./decisions.js";
import { setUpFields } from "./fields.js";
import { setUpKey } from "./key.js";
import { setUpMembers } from "./members.js";
import { loadModels, setUpModels } from "./models.js";
import { setUpPlot } from "./plot.js";
import { setUpPolicy } from "./policy.js";
import { setUpShades } from "./shades.js";
import { snippets } from "./snippets.js";
import { state, watch } from "./state.js";
import { setUpSummary } from "./summary.js";
import { nextRequest, setUpTalk } from "./talk.js";
import { setUpToken } from "./token.js";
import { setUpTurns } from "./turn.js";

const VIEWS = { "": "chat", "#chat": "chat", "#decisions": "decisions" };

function showView() {
  const view = VIEWS[location.hash];
  if (!view) return; // a place within the page
  for (const id of ["chat", "decisions"]) byId(id).hidden = id !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = view === "chat" ? "softspec" : "Decisions – softspec";
}

// The request whose answer is shown; before there is one, that which would be sent.
function showRequest() {
  const turn = state.turns.find((each) => each.answer === state.shown);
  let body = turn?.body;
  try {
    body ??= nextRequest();
  } catch {
    return; // a schema that is half typed
  }
  byId("request").replaceChildren(...snippets("v1/chat/completions", "chat.completions", body));
}

setUpKey(loadModels);
setUpModels();
setUpShades();
setUpPolicy();
setUpTurns();
setUpToken();
setUpPlot();
setUpSummary();
setUpFields((answer, number) => state.turns.find((turn) => turn.answer === answer)?.tokens.focus(number));
setUpMembers();
setUpTalk();
setUpDecisions();
watch(["shown", "model", "policy"], showRequest);
byId("ask").addEventListener("input", showRequest);
window.addEventListener("hashchange", showView);
showView();
loadModels();
