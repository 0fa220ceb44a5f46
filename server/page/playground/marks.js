// How members are told apart: by colour, by the shape of a mark and by the dashes of a line, always the same.

import { drawn, element } from "./elements.js";

const SHAPES = [
  "M0 -4 A4 4 0 1 1 0 4 A4 4 0 1 1 0 -4 Z",
  "M-4 -4 H4 V4 H-4 Z",
  "M0 -5 L5 4 H-5 Z",
  "M0 -5 L5 0 L0 5 L-5 0 Z",
  "M0 5 L5 -4 H-5 Z",
];
const DASHES = [null, "7 4", "2 3", "10 3 2 3", "5 2 2 2 2 2"];

export function colourOf(member) {
  return `member-${member % 6}`;
}

export function dashesOf(member) {
  return DASHES[member % DASHES.length];
}

export function markAt(member, x, y) {
  return drawn("path", {
    class: `mark ${colourOf(member)}`,
    d: SHAPES[member % SHAPES.length],
    transform: `translate(${x} ${y})`,
  });
}

// A member's mark with its name.
export function memberMark(member, name) {
  const mark = drawn("svg", { class: "mark-box", viewBox: "-6 -6 12 12", "aria-hidden": "true" }, markAt(member, 0, 0));
  return element("span", { class: "member-name" }, mark, name);
}
