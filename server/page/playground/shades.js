// The scale of shades: ten equal steps from 0 nats to log K, the most that K members can differ.
// In: nats. Out: the number of a shade, whose colours are in page.css; and the legend.

import { byId, element } from "./elements.js";
import { nats } from "./numbers.js";
import { askedModel, changed, state, watch } from "./state.js";

export const STEPS = 10;

export function topOf(numMembers) {
  return Math.log(numMembers);
}

export function shadeOf(number, numMembers) {
  const top = topOf(numMembers);
  if (top === 0 || number <= 0) return 0;
  return Math.min(STEPS - 1, Math.floor((STEPS * number) / top));
}

export function setUpShades() {
  byId("shade").addEventListener("change", (event) => {
    state.shade = event.target.value;
    changed("shade");
  });
  watch(["model", "shown", "shade"], showScale);
}

function showScale() {
  const numMembers = state.shown?.ensemble?.num_members ?? askedModel()?.softspec?.num_members;
  if (!numMembers) {
    byId("scale").replaceChildren(element("p", { class: "note" }, "Only ensembles have tokens with numbers."));
    return;
  }
  const top = topOf(numMembers);
  const beyond = state.shade === "aleatoric_entropy" ? " and more" : "";
  const steps = Array.from({ length: STEPS }, (_, step) =>
    element("span", { class: `swatch shade-${step}`, title: `from ${nats((step * top) / STEPS)} nats` }));
  const ends = ["0", nats(top / 2), `log ${numMembers} = ${nats(top)} nats${beyond}`];
  byId("scale").replaceChildren(
    element("div", { class: "swatches", role: "img", "aria-label": `Shades from 0 to ${nats(top)} nats${beyond}` },
      ...steps),
    element("div", { class: "ends" }, ...ends.map((text) => element("span", {}, text))),
  );
}
