/** The page's dialogs: the API key, a deletion, the shortcuts. */

import { key, setKey } from "./api.js";
import { byId } from "./dom.js";

let asking = null;

/** Let "Cancel", "Keep" and "Close" close their dialogs. */
export function wireDialogs() {
  for (const button of document.querySelectorAll("dialog [data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
}

/** Ask for the key; resolves to whether one was given. Callers that come meanwhile share the answer. */
export function askForKey(reason = "") {
  asking ??= openKeyDialog(reason).finally(() => { asking = null; });
  return asking;
}

/** Ask whether to delete; resolves to the answer. */
export function confirmDeletion(name) {
  byId("delete-name").textContent = name;
  return outcome(byId("delete-dialog"), byId("delete-form"), () => true);
}

export function showShortcuts() {
  const dialog = byId("help-dialog");
  if (!dialog.open) dialog.showModal();
}

function openKeyDialog(reason) {
  const usual = "This service asks for a key. It is kept in this tab only and is forgotten when the tab closes.";
  byId("key-reason").textContent = reason || usual;
  const field = byId("key");
  field.value = key();
  byId("key-forget").onclick = () => { field.value = ""; setKey(""); };
  return outcome(byId("key-dialog"), byId("key-form"), () => {
    setKey(field.value.trim());
    return field.value.trim() !== "";
  });
}

/** Open a dialog; resolves to `accept()` when its form is sent, to false when it is closed otherwise. */
function outcome(dialog, form, accept) {
  return new Promise((resolve) => {
    let result = false;
    form.onsubmit = () => { result = accept(); };
    dialog.addEventListener("close", () => resolve(result), { once: true });
    dialog.showModal();
  });
}
