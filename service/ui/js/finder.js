/** Which documents are listed: by words of their names, a collection, an order; and where uploads go. */

import { byId, el } from "./dom.js";

const ORDER = "folio.order";
const PAUSE_MS = 200;

export class Finder {
  /** @param {Function} changed something else is to be listed */
  constructor(changed) {
    this.pause = 0;
    byId("find-order").value = localStorage.getItem(ORDER) ?? "name";
    if (byId("find-order").selectedIndex < 0) byId("find-order").value = "name";
    byId("find").addEventListener("input", () => {
      clearTimeout(this.pause);
      this.pause = setTimeout(changed, PAUSE_MS);
    });
    byId("find-in").addEventListener("change", changed);
    byId("find-order").addEventListener("change", () => {
      localStorage.setItem(ORDER, byId("find-order").value);
      changed();
    });
  }

  /** The collections that there are: [{name, documents}]. */
  offer(collections) {
    const chosen = byId("find-in").value;
    const options = collections.map(({ name, documents }) => el("option", { value: name }, `${name} (${documents})`));
    byId("find-in").replaceChildren(el("option", { value: "" }, "All collections"), ...options);
    byId("find-in").value = chosen;
    if (byId("find-in").selectedIndex < 0) byId("find-in").value = "";
    byId("find-in").hidden = collections.length < 2 && !byId("find-in").value;
    byId("collections").replaceChildren(...collections.map(({ name }) => el("option", { value: name })));
  }

  /** What is asked of the service. */
  get query() {
    const [search, collection] = [byId("find").value.trim(), byId("find-in").value];
    return { order: this.order === "newest" ? "newest" : "name", ...(search ? { search } : {}), ...(collection ? { collection } : {}) };
  }

  /** name, newest or folder. */
  get order() {
    return byId("find-order").value;
  }

  /** Whether some documents are not listed. */
  get narrows() {
    return Boolean(byId("find").value.trim() || byId("find-in").value);
  }

  /** The collection that uploads go into. */
  get into() {
    return byId("into").value.trim() || "default";
  }
}

/** The folder that a name begins with; "" where it names none. */
export function folderOf(name) {
  return name.includes("/") ? name.slice(0, name.lastIndexOf("/")) : "";
}
