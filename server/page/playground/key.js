// The API key: typed in by hand, kept for this tab only, sent with every request.

import { byId } from "./elements.js";
import { keepKey, keptKey } from "./server.js";

export function setUpKey(used) {
  byId("key").value = keptKey();
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keepKey(byId("key").value.trim());
    byId("key-box").open = false;
    used();
  });
}

export function askForKey() {
  byId("key-box").open = true;
  byId("key").focus();
}
