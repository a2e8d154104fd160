/** The question: its words, how to read, and where. */

import { byName } from "./documents.js";
import { byId, el } from "./dom.js";

const MODE = "folio.mode";

export class Composer {
  /** @param {Object} on `ask(question, request)`, `stop()` */
  constructor(on) {
    this.on = on;
    this.question = byId("question");
    this.scope = byId("scope");
    byId("composer").addEventListener("submit", (event) => { event.preventDefault(); this.#ask(); });
    byId("stop").addEventListener("click", () => on.stop());
    byId("modes").addEventListener("change", () => localStorage.setItem(MODE, this.#mode()));
    this.question.addEventListener("input", () => this.#fit());
    this.question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#ask();
    });
    const remembered = document.querySelector(`#modes input[value="${CSS.escape(localStorage.getItem(MODE) ?? "")}"]`);
    if (remembered) remembered.checked = true;
  }

  /** Offer these documents and collections; keep the choice where it still stands. */
  offer(documents, collections) {
    const chosen = this.scope.value;
    const ready = documents.filter((document) => document.status !== "failed").sort(byName);
    const options = [el("option", { value: "" }, "All documents")];
    if (collections.length > 1) options.push(el("optgroup", { label: "Collections" }, ...collections.map((name) => el("option", { value: `collection:${name}` }, name))));
    if (ready.length) options.push(el("optgroup", { label: "Documents" }, ...ready.map((document) => el("option", { value: `document:${document.id}` }, document.name))));
    this.scope.replaceChildren(...options);
    this.choose(chosen);
  }

  /** Offer these modes of answering and no others. */
  offerModes(known) {
    for (const input of document.querySelectorAll("#modes input")) input.closest("label").hidden = !known.includes(input.value);
    if (document.querySelector("#modes input:checked").closest("label").hidden) document.querySelector("#modes input").checked = true;
  }

  /** Choose a scope: "", "collection:NAME" or "document:ID". */
  choose(value) {
    this.scope.value = value;
    if (this.scope.selectedIndex < 0) this.scope.value = "";
  }

  /** Put words into the question and the cursor behind them. */
  suggest(words) {
    this.question.value = words;
    this.#fit();
    this.question.focus();
  }

  focus() {
    this.question.focus();
    this.question.select();
  }

  /** Whether the next question is a follow-up. */
  following(on) {
    this.question.placeholder = on ? "Ask a follow-up…" : "Ask a question…";
    byId("anew").hidden = !on;
  }

  /** While an answer runs, Stop stands where Ask was. */
  running(on) {
    const hadFocus = document.activeElement === byId(on ? "submit" : "stop");
    byId("submit").hidden = on;
    byId("stop").hidden = !on;
    if (hadFocus) byId(on ? "stop" : "submit").focus();
  }

  #mode() {
    return document.querySelector("#modes input:checked").value;
  }

  #ask() {
    const question = this.question.value.trim();
    if (!question || byId("submit").hidden) return;
    const [kind, ...rest] = this.scope.value.split(":");
    const request = { question, mode: this.#mode() };
    request.receipt = ["auto", "long", "retrieval"].includes(request.mode); // others search while they write
    if (kind === "document") request.documents = [rest.join(":")];
    if (kind === "collection") request.collection = rest.join(":");
    this.question.value = "";
    this.#fit();
    this.on.ask(question, request);
  }

  #fit() {
    this.question.style.height = "auto";
    this.question.style.height = `${this.question.scrollHeight}px`;
  }
}
