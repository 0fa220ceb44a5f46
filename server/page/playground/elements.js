// Elements from plain values. Text becomes text nodes and nothing else, so that no answer can be markup.
// In: a tag, attributes (a function is a listener) and children. Out: the element.

const SVG = "http://www.w3.org/2000/svg";

export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

export function byId(id) {
  return document.getElementById(id);
}

// Put children in place of those that an element has; those that are null are left out.
export function fill(parent, ...children) {
  parent.replaceChildren(...children.filter((child) => child !== null));
}

// A table with its head; cells are text or elements.
export function table(caption, head, rows) {
  return element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": caption },
    element("table", {},
      element("caption", { class: "unseen" }, caption),
      element("thead", {}, element("tr", {}, ...head.map((cell) => element("th", { scope: "col" }, cell)))),
      element("tbody", {}, ...rows.map(([first, ...rest]) =>
        element("tr", {}, element("th", { scope: "row" }, first), ...rest.map((cell) => element("td", {}, cell)))))));
}

// A bar whose length is a share of 1; the number stands beside it.
export function bar(share, kind = "") {
  const length = element("span", { class: `bar ${kind}`, "aria-hidden": "true" });
  length.style.setProperty("--share", share);
  return length;
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}
