// The request as curl and as Python, to be copied. It asks for the whole answer at once, not for a stream.
// In: a path, the call of OpenAI's client that asks there, and a body. Out: two texts that run as they are.

import { element } from "./elements.js";
import { keptKey, urlOf } from "./server.js";

const KEY = "SOFTSPEC_API_KEY";
const SHORT = 60;
const OPENAI = ["model", "messages", "temperature", "max_tokens", "seed", "response_format", "input", "questions"];

export function snippets(path, call, body) {
  return [shown("curl", curl(path, body)), shown("Python", python(call, body))];
}

export function curl(path, body) {
  const key = keptKey() ? ` -H "Authorization: Bearer $${KEY}"` : "";
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl ${urlOf(path)}${key} \\\n  -H 'Content-Type: application/json' -d '${json}'\n`;
}

export function python(call, body) {
  const own = Object.entries(body).filter(([name]) => OPENAI.includes(name));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => !OPENAI.includes(name)));
  const given = [...own, ...(Object.keys(extra).length > 0 ? [["extra_body", extra]] : [])];
  const key = keptKey() ? `os.environ["${KEY}"]` : '"-"';
  return [
    ...(keptKey() ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(urlOf("v1"))}, api_key=${key})`,
    `answer = client.${call}.create(`,
    ...given.map(([name, value]) => `    ${name}=${literal(value)},`),
    ")",
    "print(answer.model_dump_json(indent=2))",
    "",
  ].join("\n");
}

// A value of JSON as Python has it, on one line where it is short.
function literal(value, indent = "    ") {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const parts = Array.isArray(value)
    ? value.map((each) => literal(each, inner))
    : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each, inner)}`);
  const short = `${open}${parts.join(", ")}${close}`;
  if (short.length <= SHORT && !short.includes("\n")) return short;
  return `${open}\n${parts.map((part) => `${inner}${part},\n`).join("")}${indent}${close}`;
}

function shown(name, text) {
  const code = element("code", {}, text);
  const told = element("span", { role: "status", class: "note" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      told.textContent = "copied";
    } catch {
      // Without TLS a browser may forbid it: the text is marked, to be copied by hand.
      getSelection().selectAllChildren(code);
      told.textContent = "marked: copy it with the keyboard";
    }
  };
  return element("div", { class: "snippet" },
    element("div", { class: "row" }, element("h4", {}, name),
      element("button", { type: "button", "aria-label": `Copy the request as ${name}`, click: copy }, "Copy"), told),
    element("pre", { tabindex: "0", role: "region", "aria-label": `The request as ${name}` }, code));
}
