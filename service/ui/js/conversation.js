/** The questions of this tab and their answers, newest last. They outlive a reload, not the tab. */

import { byId, count, el } from "./dom.js";
import { showFigures } from "./figures.js";
import { announce } from "./notices.js";
import { numbered } from "./pieces.js";
import { draftSources, newTurn, render, run } from "./turn.js";

const TURNS = "folio.turns";
const KEPT = 20;

export class Conversation {
  /** @param {Object} on `running(boolean)`, `open(what)` shows a passage in the source pane */
  constructor(on) {
    this.on = on;
    this.coloured = false;
    this.stopper = null;
    this.cited = null; // {turn, number} whose passage is shown
    this.turns = restore();
    this.nodes = new Map();
    this.awaited = 0;
    addEventListener("beforeunload", () => this.stop());
    addEventListener("pagehide", () => keep(this.turns));
    this.#showAll();
  }

  async ask(question, request) {
    const turn = newTurn(question, request);
    this.turns.push(turn);
    this.stopper = new AbortController();
    this.on.running(true);
    this.#showAll();
    this.#scrollTo(turn);
    announce("Looking for an answer.");
    await run(turn, this.stopper.signal, (type) => this.#changed(turn, type));
    this.stopper = null;
    this.on.running(false);
    keep(this.turns);
    announce(spoken(turn));
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

  #showAll() {
    byId("welcome").hidden = this.turns.length > 0;
    for (const turn of this.turns) {
      if (this.nodes.has(turn)) continue;
      const node = el("article", { class: "turn" });
      this.nodes.set(turn, node);
      byId("turns").append(node);
      this.#show(turn);
    }
    this.#foot();
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
    };
    this.nodes.get(turn).replaceChildren(...render(turn, how));
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

function spoken(turn) {
  if (turn.error) return `${turn.error.title}. ${turn.error.detail}`;
  if (turn.state === "stopped") return "The answer was stopped.";
  const { list } = numbered(turn.citations);
  return `Answer: ${turn.text} ${list.length ? count(list.length, "citation") : "No citation"}.`;
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
