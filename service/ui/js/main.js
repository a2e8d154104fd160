/** The page: its parts made and joined. */

import * as api from "./api.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { showConversations } from "./conversations.js";
import { askForKey, showShortcuts, wireDialogs } from "./dialogs.js";
import { Documents } from "./documents.js";
import { byId } from "./dom.js";
import { wireFigures } from "./figures.js";
import { report } from "./notices.js";
import { wireShortcuts } from "./shortcuts.js";
import { Source } from "./source.js";
import { showStarters } from "./starters.js";
import { Tables } from "./tables.js";
import { showWatches } from "./watches.js";

const READINESS_MS = 10_000;

api.onUnauthorised(askForKey);
wireDialogs();
wireFigures();

const composer = new Composer({ ask: (question, request) => { view("ask"); conversation.ask(question, request); }, stop: () => conversation.stop() });
const documents = new Documents({
  open: (item) => { conversation.left(); view("source"); source.open({ document: item.id, name: item.name, media_type: item.media_type }); },
  scope: (item) => { composer.choose(`document:${item.id}`); view("ask"); composer.focus(); },
  change: (items, collections) => { composer.offer(items, collections); showStarters(items, (words) => composer.suggest(words)); },
  remove: (id) => source.forget(id),
});
const conversation = new Conversation({
  running: (on) => composer.running(on),
  open: (what) => { view("source"); source.open(what); },
  following: (on) => composer.following(on),
  edit: (words) => composer.suggest(words),
});
const source = new Source({
  step: (by) => conversation.step(by),
  opened: (id) => documents.mark(id),
  ask: askOf,
  open: (what) => { conversation.left(); source.open(what); },
});

const tables = new Tables((what) => { conversation.left(); view("source"); source.open(what); });

byId("open-help").addEventListener("click", showShortcuts);
byId("open-key").addEventListener("click", async () => { if (await askForKey()) load(); });
byId("open-tables").addEventListener("click", () => tables.show(documents.collections.map((one) => one.name)));
byId("open-watches").addEventListener("click", showWatches);
byId("open-conversations").addEventListener("click", openConversations);
byId("colours").addEventListener("click", toggleColours);
byId("anew").addEventListener("click", startAnew);
for (const tab of document.querySelectorAll(".tabs [data-show]")) tab.addEventListener("click", () => view(tab.dataset.show));

wireShortcuts({
  "/": () => { view("ask"); composer.focus(); },
  "?": showShortcuts,
  "]": () => conversation.step(1),
  "[": () => conversation.step(-1),
  n: startAnew,
  h: openConversations,
  u: () => byId("file").click(),
  t: toggleColours,
  "+": () => source.zoom(1),
  "-": () => source.zoom(-1),
  0: () => source.zoom(0),
  Escape: () => {
    if (conversation.stop()) return;
    if (conversation.stopEditing()) composer.suggest("");
    else { conversation.left(); source.close(); view("ask"); }
  },
});

load();
api.modes().then((known) => composer.offerModes(known)).catch(report);
watch();

function load() {
  documents.start().catch(report);
}

/** On a narrow screen one pane is seen at a time. */
function view(name) {
  document.body.dataset.view = name;
  for (const tab of document.querySelectorAll(".tabs [data-show]")) {
    if (tab.dataset.show === name) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
}

/** Ask a suggested question of its document. */
function askOf(question, id) {
  composer.choose(`document:${id}`);
  view("ask");
  composer.suggest(question);
}

function openConversations() {
  showConversations((id, turns) => { view("ask"); conversation.load(id, turns); }, (id) => conversation.forgotten(id));
}

function startAnew() {
  view("ask");
  conversation.startAnew();
  composer.focus();
}

function toggleColours() {
  const button = byId("colours");
  const on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(on));
  conversation.colour(on);
}

/** Say in the bar whether the service is there, for as long as the page is open. */
async function watch() {
  for (;;) {
    const said = await api.readiness().catch(() => null);
    const state = said === null ? "gone" : said.ready ? "ready" : "waiting";
    const words = { gone: "No connection", ready: said?.model ? `Ready · ${said.model}` : "Ready", waiting: said?.detail ?? "Starting" };
    byId("service").dataset.state = state;
    if (byId("service").textContent !== words[state]) byId("service").textContent = words[state];
    await new Promise((resume) => setTimeout(resume, READINESS_MS));
  }
}
