// Which model is asked: filled from what the server serves, ensembles first.

import { alertOf } from "./alerts.js";
import { byId, element } from "./elements.js";
import { get } from "./server.js";
import { changed, state } from "./state.js";

export async function loadModels() {
  try {
    // Not aliases: which ensemble answers is known only with its answer.
    state.models = (await get("v1/models")).data.filter((model) => !model.softspec?.alias_of);
  } catch (fault) {
    alertOf(fault);
    return;
  }
  const isServed = state.models.some((model) => model.id === state.model);
  state.model = isServed ? state.model : (state.models[0]?.id ?? "");
  const kinds = [
    ["Ensembles", state.models.filter((model) => model.softspec)],
    ["Members", state.models.filter((model) => !model.softspec && model.id.includes("/member-"))],
    ["Others", state.models.filter((model) => !model.softspec && !model.id.includes("/member-"))],
  ];
  byId("model").replaceChildren(...kinds.filter(([, models]) => models.length > 0).map(([kind, models]) =>
    element("optgroup", { label: kind }, ...models.map((model) => element("option", {}, model.id)))));
  byId("model").value = state.model;
  changed("model");
}

export function setUpModels() {
  byId("model").addEventListener("change", (event) => {
    state.model = event.target.value;
    changed("model");
  });
}
