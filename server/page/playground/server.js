// Requests to the server that this page came from. In: a path below it and a body. Out: JSON, or the chunks of a stream.
// Whatever goes wrong is a Fault, in words for the person who asked.

import { eventsOf } from "./events.js";

const KEY = "softspec-key";

export class Fault extends Error {
  constructor(message, about = {}) {
    super(message);
    Object.assign(this, { status: null, type: null, param: null, requestId: null, retryAt: null }, about);
  }
}

export function keepKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export function keptKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

// Behind a proxy the server may lie below a path: everything is relative to the page.
export function urlOf(path) {
  return new URL(path, document.baseURI.split("#")[0]).href;
}

export async function get(path) {
  return (await answered(path, {})).json();
}

export async function post(path, body) {
  return (await answered(path, posted(body))).json();
}

// A streamed answer; `begun` is told the request's id before the first chunk.
export async function* stream(path, body, signal, begun = () => {}) {
  const response = await answered(path, { ...posted({ ...body, stream: true }), signal });
  const requestId = response.headers.get("x-request-id");
  begun(requestId);
  try {
    for await (const data of eventsOf(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw faultOf(chunk, response);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof Fault || signal?.aborted) throw error;
    throw new Fault("The connection was lost while the answer was coming.", { requestId });
  }
  throw new Fault("The answer broke off: the connection was closed before its end.", { requestId });
}

function posted(body) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

async function answered(path, options) {
  const key = keptKey();
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(urlOf(path), { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Fault("The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  throw faultOf(await response.json().catch(() => ({})), response);
}

function faultOf(body, response) {
  const told = typeof body.error === "string" ? { message: body.error } : (body.error ?? {});
  return new Fault(told.message ?? body.detail ?? `The server answered ${response.status}.`, {
    status: response.ok ? (told.code ?? null) : response.status,
    type: told.type ?? null,
    param: told.param ?? null,
    requestId: response.headers.get("x-request-id"),
    retryAt: retryAt(response.headers.get("retry-after")),
  });
}

// Retry-After is a number of seconds or a date.
function retryAt(header) {
  if (header === null) return null;
  const date = /^\d+$/.test(header) ? new Date(Date.now() + 1000 * Number(header)) : new Date(header);
  return Number.isNaN(date.getTime()) ? null : date;
}
