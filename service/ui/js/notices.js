/** What happened, for the eye (errors stay until dismissed) and for screen readers. */

import { byId, el, icon } from "./dom.js";

const SHOWN = 3;

/** Say it to screen readers, without moving the focus. */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** Show an error until it is dismissed. */
export function notify(title, detail = "") {
  const box = byId("notices");
  const notice = el("div", { class: "notice" },
    el("p", {}, el("strong", {}, title), detail),
    el("button", { type: "button", class: "quiet square", "aria-label": "Dismiss", on: { click: () => notice.remove() } }, icon("close")));
  box.append(notice);
  while (box.children.length > SHOWN) box.firstElementChild.remove();
}

/** Show whatever was thrown. */
export function report(error) {
  if (error?.name === "AbortError") return;
  notify(error.title ?? "Something went wrong", error.detail ?? error.message);
}
