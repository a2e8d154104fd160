/** Watched questions: what they were answered last, and what became different. */

import * as api from "./api.js";
import { byId, count, el, icon } from "./dom.js";
import { announce, report } from "./notices.js";

const KEPT = ["mode", "documents", "collection", "passages", "rerank", "wider"];

/** Watch the question of a turn. */
export async function watchTurn(turn) {
  const options = Object.fromEntries(KEPT.filter((name) => turn.request[name] !== undefined).map((name) => [name, turn.request[name]]));
  try {
    await api.addWatch({ ...options, question: turn.query ?? turn.question });
    announce("The question is watched: it is asked again when its documents change.");
  } catch (error) {
    report(error);
  }
}

/** Show the list. */
export async function showWatches() {
  const dialog = byId("watches-dialog");
  if (dialog.open) return;
  try {
    const { watches } = await api.listWatches();
    const changes = await Promise.all(watches.map(async (one) => (await api.watchChanges(one.id)).changes));
    byId("watches-empty").hidden = watches.length > 0;
    byId("watch-list").replaceChildren(...watches.map((one, i) => entry(one, changes[i])));
    dialog.showModal();
  } catch (error) {
    report(error);
  }
}

function entry(watch, changes) {
  const node = el("li", {},
    el("div", { class: "watch-head" },
      el("strong", {}, watch.question),
      el("button", { type: "button", class: "quiet square", title: "Watch no longer", "aria-label": `Watch no longer: ${watch.question}`, on: { click: () => remove(watch, node) } }, icon("delete"))),
    el("p", {}, watch.answer ? watch.answer.answer : "Not asked yet."),
    changes.length ? el("details", {}, el("summary", {}, count(changes.length, "change")), ...changes.map(changed)) : null);
  return node;
}

function changed(change) {
  const since = change.documents.map((one) => (one.deleted ? "a document was deleted" : `${one.name}, version ${one.version}`)).join("; ");
  const tags = { "=": "span", "-": "del", "+": "ins" };
  return el("div", { class: "change" },
    el("small", {}, `${new Date(change.at).toLocaleString()} · ${since}`),
    el("p", {}, ...change.difference.words.map(([how, words]) => el(tags[how] ?? "span", {}, words))));
}

async function remove(watch, node) {
  try {
    await api.deleteWatch(watch.id);
    const next = node.nextElementSibling ?? node.previousElementSibling;
    node.remove();
    (next?.querySelector("button") ?? byId("watches-dialog").querySelector("[data-close]")).focus();
    byId("watches-empty").hidden = byId("watch-list").children.length > 0;
  } catch (error) {
    report(error);
  }
}
