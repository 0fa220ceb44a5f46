// The belief in each member over the tokens of an answer, as lines that need no colour to be told apart, and as a table.
// In: the answer that is shown, while it grows. Out: an SVG.

import { byId, drawn, element, fill, table } from "./elements.js";
import { colourOf, dashesOf, markAt, memberMark } from "./marks.js";
import { count, percent } from "./numbers.js";
import { state, watch } from "./state.js";

const WIDTH = 340;
const HEIGHT = 170;
const LEFT = 44;
const RIGHT = 14;
const TOP = 10;
const BOTTOM = 26;
const MARKS = 6;

export function setUpPlot() {
  watch(["answer", "shown"], show);
  show();
}

function show() {
  const answer = state.shown;
  const box = byId("belief");
  if (!answer?.ensemble) {
    fill(box, element("p", { class: "note" }, "With the first token of an ensemble's answer this begins to move."));
    return;
  }
  const { course } = answer;
  const last = course.at(-1).weights;
  const asTable = element("details", { open: box.querySelector("details")?.open },
    element("summary", {}, "As a table"));
  const addRows = () => asTable.open && asTable.childElementCount === 1 && asTable.append(steps(answer, course));
  asTable.addEventListener("toggle", addRows);
  addRows();
  fill(box,
    plot(course, last),
    element("ul", { class: "members-now" }, ...last.map((share, k) =>
      element("li", {}, memberMark(k, `member ${k}`), element("output", { "data-weight": share }, percent(share))))),
    answer.belief.rule === "fixed"
      ? element("p", { class: "note" }, "This ensemble's weights are fixed: they do not move.") : null,
    asTable,
  );
}

function plot(course, last) {
  const tokens = course.at(-1).token;
  const x = (token) => LEFT + ((WIDTH - LEFT - RIGHT) * token) / Math.max(1, tokens);
  const y = (share) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share;
  const every = Math.max(1, Math.ceil(course.length / MARKS));
  const lines = last.map((_, k) => {
    const points = course.map(({ token, weights }) => `${x(token).toFixed(1)},${y(weights[k]).toFixed(1)}`);
    // Each member's marks begin a little later, so that lines that lie on each other show whose they are.
    const shift = Math.floor((k * every) / last.length);
    const marked = course.filter(({ token }, place) => place % every === shift || token === tokens);
    return drawn("g", { class: "line" },
      drawn("polyline", { class: colourOf(k), points: points.join(" "), "stroke-dasharray": dashesOf(k) }),
      ...marked.map(({ token, weights }) => markAt(k, x(token), y(weights[k]))));
  });
  const told = last.map((share, k) => `member ${k} ${percent(share)}`).join(", ");
  return drawn("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-labelledby": "plot-title plot-told" },
    drawn("title", { id: "plot-title" }, "Belief in each member after every token"),
    drawn("desc", { id: "plot-told" }, `After ${count(tokens, "token")}: ${told}.`),
    ...[0, 0.5, 1].map((share) => drawn("g", { class: "axis" },
      drawn("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(share), y2: y(share) }),
      drawn("text", { x: LEFT - 5, y: y(share) + 4, "text-anchor": "end" }, `${100 * share} %`))),
    drawn("g", { class: "axis" },
      drawn("text", { x: LEFT, y: HEIGHT - 8 }, "before"),
      drawn("text", { x: WIDTH - RIGHT, y: HEIGHT - 8, "text-anchor": "end" }, `after token ${tokens}`)),
    ...lines);
}

function steps(answer, course) {
  const head = ["token", ...course[0].weights.map((_, k) => `member ${k}`)];
  const rows = course.map(({ token, weights }) => [
    token === 0 ? "before" : `${token} ${(answer.spelled[token - 1] ?? "withheld").trim()}`,
    ...weights.map(percent),
  ]);
  return table("Belief in each member after every token", head, rows);
}
