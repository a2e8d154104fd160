/** The conversations that the service keeps: opened, renamed, exported, deleted. */

import * as api from "./api.js";
import { download } from "./actions.js";
import { byId, count, el, icon } from "./dom.js";
import { announce, report } from "./notices.js";

const CURRENT = "folio.conversation";
const TITLE_CHARS = 120;

/** Keeps the turns of the conversation that this tab is in. */
export class Keeper {
  constructor() {
    this.id = sessionStorage.getItem(CURRENT);
    this.refused = false;
    this.last = Promise.resolve();
  }

  /** Another conversation, or none yet. */
  enter(id) {
    this.id = id;
    if (id) sessionStorage.setItem(CURRENT, id);
    else sessionStorage.removeItem(CURRENT);
  }

  /**
   * Keep a turn, one after another.
   * @param {number} ordinal which of its conversation it is, from 0
   * @param {boolean} begins whether it begins one, rather than take the place of a first turn
   */
  keep(turn, ordinal, begins) {
    this.last = this.last.then(() => this.#keep(turn, ordinal, begins));
    return this.last;
  }

  async #keep(turn, ordinal, begins) {
    if (begins) this.enter(null);
    if (this.refused || turn.error || !turn.text) return;
    try {
      if (!this.id && ordinal === 0) this.enter((await api.createConversation(turn.question.slice(0, TITLE_CHARS))).id);
      if (this.id) await api.keepTurn(this.id, ordinal, turn);
    } catch (error) {
      if (error.status === 403) this.refused = true; // a key that may only read
      else if (error.status === 404) this.enter(null); // deleted in another tab
      else if (error.status !== 409) report(error); // else a document of it was deleted meanwhile
    }
  }
}

/** Show the list; `open(id, turns)` is called with the one that is chosen, `gone(id)` with one that was deleted. */
export async function showConversations(open, gone) {
  const dialog = byId("conversations-dialog");
  if (dialog.open) return;
  try {
    fill((await api.listConversations()).conversations, { open: (one) => enter(one, open), gone });
    dialog.showModal();
  } catch (error) {
    report(error);
  }
}

async function enter(conversation, open) {
  try {
    const { turns } = await api.conversationTurns(conversation.id);
    byId("conversations-dialog").close();
    open(conversation.id, turns);
  } catch (error) {
    report(error);
  }
}

function fill(conversations, on) {
  byId("conversations-empty").hidden = conversations.length > 0;
  byId("conversation-list").replaceChildren(...conversations.map((one) => row(one, on)));
}

function row(one, on) {
  const act = (name, label, click) => el("button", { type: "button", class: "quiet square", title: label, "aria-label": `${label} ${one.title}`, on: { click } }, icon(name));
  const node = el("li", {},
    el("button", { type: "button", class: "quiet conversation", on: { click: () => on.open(one) } },
      el("span", {}, one.title), el("small", {}, `${count(one.turns, "question")} · ${new Date(one.updated_at).toLocaleString()}`)),
    act("edit", "Rename", () => rename(one, node, on)),
    act("copy", "Export", () => save(one, "footnotes")),
    act("source", "Export with BibTeX", () => save(one, "bibtex")),
    act("delete", "Delete", () => remove(one, node, on)));
  return node;
}

function rename(one, node, on) {
  const field = el("input", { type: "text", maxlength: 200, value: one.title, "aria-label": `New name of ${one.title}` });
  const form = el("form", {}, field, el("button", { type: "submit", class: "quiet" }, "Rename"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!field.value.trim()) return;
    try {
      const fresh = row(await api.renameConversation(one.id, field.value.trim()), on);
      node.replaceWith(fresh);
      fresh.querySelector("button").focus();
    } catch (error) {
      report(error);
    }
  });
  node.replaceChildren(form);
  field.select();
}

async function save(one, references) {
  try {
    download(`${one.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) || "conversation"}.md`, await api.exportConversation(one.id, references), "text/markdown");
  } catch (error) {
    report(error);
  }
}

async function remove(one, node, on) {
  try {
    await api.deleteConversation(one.id);
    const next = node.nextElementSibling ?? node.previousElementSibling;
    node.remove();
    (next?.querySelector("button") ?? byId("conversations-dialog").querySelector("[data-close]")).focus();
    byId("conversations-empty").hidden = byId("conversation-list").children.length > 0;
    announce(`${one.title} is deleted.`);
    on.gone(one.id);
  } catch (error) {
    report(error);
  }
}
