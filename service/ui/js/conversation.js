/**
 * The questions of this tab and their answers, newest last. They outlive a reload, and the service keeps each
 * conversation. Each question is asked in the conversation before it, back to the turn that began it.
 */

import { Keeper } from "./conversations.js";
import { byId, count, el, refill } from "./dom.js";
import { showFigures } from "./figures.js";
import { announce } from "./notices.js";
import { numbered } from "./pieces.js";
import { widened } from "./proof.js";
import { draftSources, newTurn, render, run } from "./turn.js";

const TURNS = "folio.turns";
const ANEW = "folio.anew";
const KEPT = 20;
const SENT_CHARS = 100_000; // of history: below what the service takes, in any script

export class Conversation {
  /**
   * @param {Object} on `running(boolean)`, `open(what)` shows a passage in the source pane, `following(boolean)` says
   *   whether the next question is a follow-up, `edit(words)` puts them where questions are written
   */
  constructor(on) {
    this.on = on;
    this.coloured = false;
    this.stopper = null;
    this.cited = null; // {turn, number} whose passage is shown
    this.keeper = new Keeper();
    this.turns = restore();
    this.anew = sessionStorage.getItem(ANEW) !== null; // the next question begins a conversation
    this.edited = null; // the turn in whose place the next question is asked
    this.nodes = new Map();
    this.awaited = 0;
    addEventListener("beforeunload", () => this.stop());
    addEventListener("pagehide", () => keep(this.turns));
    this.#showAll();
  }

  async ask(question, request) {
    const fresh = this.edited?.fresh ?? this.anew;
    const replaces = this.edited !== null;
    if (this.edited) this.#remove(this.edited);
    const turn = { ...newTurn(question, request), fresh };
    const history = fresh ? [] : historyOf(this.turns);
    const before = this.turns.at(-1);
    this.turns.push(turn);
    this.stopper = new AbortController();
    this.on.running(true);
    this.#setAnew(false);
    if (before) this.#show(before); // others follow it now
    this.#scrollTo(turn);
    announce("Looking for an answer.");
    await run(turn, history, this.stopper.signal, (type) => this.#changed(turn, type));
    this.stopper = null;
    this.on.running(false);
    this.#show(turn); // what can be done with it
    keep(this.turns);
    announce(spoken(turn));
    const ordinal = ordinalOf(this.turns, turn);
    await this.keeper.keep(turn, ordinal, ordinal === 0 && !replaces);
  }

  /** Go on with a kept conversation, in the place of what this tab shows. */
  load(id, turns) {
    this.stop();
    this.stopEditing();
    this.left();
    this.keeper.enter(id);
    for (const node of this.nodes.values()) node.remove();
    for (const line of byId("turns").querySelectorAll(".anew")) line.remove();
    this.nodes.clear();
    this.turns = turns.map((turn, i) => ({ ...newTurn(turn.question, turn.request), ...turn, fresh: i === 0 }));
    this.#setAnew(false);
    keep(this.turns);
    byId("turns").lastElementChild.scrollIntoView({ block: "start" });
    byId("question").focus();
    announce("The conversation is open.");
  }

  /** A kept conversation was deleted; what this tab shows of it stays, and is kept no longer. */
  forgotten(id) {
    if (this.keeper.id === id) this.keeper.enter(null);
  }

  /** Let the next question stand alone; what was said before stays in sight. */
  startAnew() {
    if (this.anew || !this.turns.length || this.stopper) return;
    this.stopEditing();
    this.#setAnew(true);
    this.#show(this.turns.at(-1));
    byId("turns").lastElementChild.scrollIntoView({ block: "end" });
    announce("The next question begins a new conversation.");
  }

  /** Leave the last question as it was asked; returns whether it was being changed. */
  stopEditing() {
    if (!this.edited) return false;
    this.nodes.get(this.edited).classList.remove("edited");
    this.edited = null;
    return true;
  }

  #edit(turn) {
    this.edited = turn;
    this.nodes.get(turn).classList.add("edited");
    this.on.edit(turn.question);
    announce("The question can be changed. Escape leaves it as it was.");
  }

  #retry(turn) {
    this.edited = turn;
    byId("question").focus();
    this.ask(turn.question, turn.request);
  }

  #wider(turn) {
    this.edited = turn;
    byId("question").focus();
    this.ask(turn.question, widened(turn.request, turn.proof.wider));
  }

  #remove(turn) {
    this.stopEditing();
    if (this.cited?.turn === turn) this.left();
    this.turns = this.turns.filter((each) => each !== turn);
    this.nodes.get(turn).remove();
    this.nodes.delete(turn);
  }

  /** Stop the running answer; returns whether one was running. */
  stop() {
    this.stopper?.abort();
    return this.stopper !== null;
  }

  /** Open the next or previous citation of the answer that is being read, the last one at first. */
  step(by) {
    const turn = this.cited?.turn ?? this.turns.findLast((each) => each.citations.length);
    if (!turn) return;
    const { list } = numbered(turn.citations);
    const number = this.cited ? this.cited.number + by : by > 0 ? 1 : list.length;
    const next = ((number - 1 + list.length) % list.length) + 1;
    this.open(turn, list[next - 1], next);
  }

  open(turn, citation, number) {
    this.cited = { turn, number };
    this.#markChips();
    this.on.open({ ...citation, name: citation.name || citation.document, number });
  }

  /** The source pane shows something else, or nothing. */
  left() {
    this.cited = null;
    this.#markChips();
  }

  colour(on) {
    this.coloured = on;
    this.redraw();
  }

  redraw() {
    for (const turn of this.turns) this.#show(turn);
  }

  #setAnew(on) {
    this.anew = on;
    if (on) sessionStorage.setItem(ANEW, "");
    else sessionStorage.removeItem(ANEW);
    this.#showAll();
  }

  #showAll() {
    byId("welcome").hidden = this.turns.length > 0;
    for (const turn of this.turns) {
      if (this.nodes.has(turn)) continue;
      if (turn.fresh && this.nodes.size) this.#divide();
      const node = el("article", { class: "turn" });
      this.nodes.set(turn, node);
      byId("turns").append(node);
      this.#show(turn);
    }
    if (this.anew) this.#divide();
    this.on.following(this.turns.length > 0 && !this.anew);
    this.#foot();
  }

  /** A line behind which a new conversation begins. */
  #divide() {
    const box = byId("turns");
    if (!box.lastElementChild.matches(".anew")) box.append(el("p", { class: "anew" }, "New conversation"));
  }

  #changed(turn, type) {
    if (type !== "message") {
      this.#show(turn);
      this.#foot();
    } else if (!this.awaited) {
      this.awaited = requestAnimationFrame(() => { this.awaited = 0; this.#show(turn); });
    }
  }

  #show(turn) {
    const box = byId("turns");
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
    const how = {
      coloured: this.coloured,
      openCitation: (...which) => this.open(...which),
      openResult: (result) => { this.left(); this.on.open(result); },
      redraw: () => { this.#show(turn); keep(this.turns); },
      again: turn === this.turns.at(-1) && !this.anew && !this.stopper ? { retry: (which) => this.#retry(which), edit: (which) => this.#edit(which), wider: (which) => this.#wider(which) } : null,
    };
    refill(this.nodes.get(turn), ...render(turn, how));
    this.#markChips();
    if (atEnd && turn.state === "running") box.scrollTop = box.scrollHeight;
  }

  #markChips() {
    for (const [turn, node] of this.nodes) {
      for (const button of node.querySelectorAll("[data-number]")) {
        const current = this.cited?.turn === turn && String(this.cited.number) === button.dataset.number;
        if (current) button.setAttribute("aria-current", "true");
        else button.removeAttribute("aria-current");
      }
    }
  }

  #foot() {
    const last = this.turns.at(-1);
    showFigures(last?.stats ?? null);
    byId("colours").hidden = !last?.runs.length || !(draftSources(last).length || this.coloured);
  }

  #scrollTo(turn) {
    this.nodes.get(turn).scrollIntoView({ block: "start" });
  }
}

/** Which of its conversation a turn is, from 0; what brought no answer is not kept, and so not counted. */
function ordinalOf(turns, turn) {
  const at = turns.indexOf(turn);
  const first = turns.slice(0, at + 1).findLastIndex((each) => each.fresh);
  return turns.slice(Math.max(first, 0), at).filter((each) => each.text && !each.error).length;
}

function spoken(turn) {
  if (turn.error) return `${turn.error.title}. ${turn.error.detail}`;
  if (turn.state === "stopped") return "The answer was stopped.";
  const { list } = numbered(turn.citations);
  return `Answer: ${turn.text} ${list.length ? count(list.length, "citation") : "No citation"}.`;
}

/** The conversation that the last turn belongs to, as the service takes it; what brought no answer is left out. */
export function historyOf(turns) {
  const history = [];
  let chars = 0;
  for (const turn of [...turns].reverse()) {
    chars += turn.question.length + turn.text.length;
    if (chars > SENT_CHARS) break;
    if (turn.text && !turn.error) history.unshift({ role: "user", content: turn.question }, { role: "assistant", content: turn.text });
    if (turn.fresh) break;
  }
  return history;
}

function restore() {
  const turns = JSON.parse(sessionStorage.getItem(TURNS) ?? "[]").filter((turn) => turn.claims); // not of an older page
  for (const turn of turns) if (turn.state === "running") turn.state = "stopped"; // the reload left its stream
  return turns;
}

function keep(turns) {
  try {
    sessionStorage.setItem(TURNS, JSON.stringify(turns.slice(-KEPT)));
  } catch {
    sessionStorage.removeItem(TURNS); // the tab's storage is full: the page goes on without it
  }
}
