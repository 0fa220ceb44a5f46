// What went wrong, where everybody sees and hears it; and short news that only screen readers say.

import { byId, element, fill } from "./elements.js";
import { askForKey } from "./key.js";

export function alertOf(fault) {
  const facts = [
    ["status", fault.status],
    ["type", fault.type],
    ["field", fault.param],
    ["request", fault.requestId],
  ].filter(([, value]) => value !== null && value !== undefined);
  fill(byId("alert"),
    element("p", {}, element("strong", {}, fault.message)),
    fault.retryAt ? element("p", { class: "retry" }, whenAgain(fault.retryAt)) : null,
    element("p", { class: "note" }, facts.map(([name, value]) => `${name} ${value}`).join(" · ")),
    element("button", { type: "button", click: clearAlert }, "Close"),
  );
  if (fault.status === 401) askForKey();
}

export function clearAlert() {
  byId("alert").replaceChildren();
}

export function say(text) {
  byId("status").textContent = text;
}

function whenAgain(date) {
  const seconds = Math.max(0, Math.round((date - Date.now()) / 1000));
  return `Try again in ${seconds} s, at ${date.toLocaleTimeString()}.`;
}
