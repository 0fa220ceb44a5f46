// What is sent beside the question. In: the form. Out: the fields of a request for chat.

import { byId } from "./elements.js";
import { sentPolicy } from "./policy.js";
import { askedModel, state } from "./state.js";

// Raises: SyntaxError where the schema is no JSON.
export function requestFor(messages) {
  const system = byId("system").value.trim();
  return {
    model: state.model,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    ...number("temperature", "temperature"),
    ...number("max_tokens", "max-tokens"),
    ...number("seed", "seed"),
    ...format(),
    ...(askedModel()?.softspec ? { uncertainty: uncertainty() } : {}),
  };
}

function number(field, id) {
  const value = byId(id).valueAsNumber;
  return Number.isNaN(value) ? {} : { [field]: value };
}

function format() {
  if (!byId("json").checked) return {};
  const schema = byId("schema").value.trim();
  if (!schema) return { response_format: { type: "json_object" } };
  const named = { name: "answer", schema: JSON.parse(schema) };
  return { response_format: { type: "json_schema", json_schema: named } };
}

function uncertainty() {
  const policy = sentPolicy();
  return { detail: "tokens", ...(policy ? { policy } : {}) };
}
