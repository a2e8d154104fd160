/** The list of documents: what is there, what is on its way, what failed and why. */

import * as api from "./api.js";
import { confirmDeletion } from "./dialogs.js";
import { byId, count, el, icon } from "./dom.js";
import { Finder, folderOf } from "./finder.js";
import { announce, report } from "./notices.js";

const JOBS = "folio.jobs";
const POLL_MS = 600;
const PHASES = { queued: "Waiting", parse: "Reading", embed: "Embedding", store: "Storing", index: "Indexing" };

export class Documents {
  /**
   * @param {Object} on `open(document)` shows its text, `scope(document)` asks it alone, `remove(id)`,
   *   `change(documents, collections)`: all that are known, whatever is listed.
   */
  constructor(on) {
    this.on = on;
    this.documents = []; // as they are listed
    this.known = new Map(); // by id
    this.collections = [];
    this.cursor = null;
    this.finder = new Finder(() => this.refresh().catch(report));
    this.arriving = new Map(); // key → {name, label, share, left}
    this.openId = null;
    byId("file").addEventListener("change", (event) => {
      this.upload([...event.target.files]);
      event.target.value = "";
    });
    byId("documents-more").addEventListener("click", () => this.more().catch(report));
    wireDrop((files) => this.upload(files));
  }

  /** Fetch the list, and follow the uploads that a reload of the page left behind. */
  async start() {
    await this.refresh();
    for (const { id, name } of rememberedJobs()) this.#follow(id, name).catch(report);
  }

  async refresh() {
    const asked = this.finder.query;
    const [page, { collections }] = await Promise.all([api.listDocuments(null, asked), api.listCollections()]);
    if (JSON.stringify(asked) !== JSON.stringify(this.finder.query)) return; // another look is under way
    if (!this.finder.narrows) this.known.clear();
    this.documents = page.documents;
    this.collections = collections;
    this.#listed(page);
  }

  async more() {
    const page = await api.listDocuments(this.cursor, this.finder.query);
    this.documents = [...this.documents, ...page.documents];
    this.#listed(page);
  }

  #listed(page) {
    for (const document of page.documents) this.known.set(document.id, document);
    this.cursor = page.next_cursor ?? null;
    this.finder.offer(this.collections);
    this.#show();
  }

  find(id) {
    return this.known.get(id) ?? null;
  }

  /** Mark the document whose text is shown. */
  mark(id) {
    this.openId = id;
    for (const row of byId("document-list").children) row.dataset.open = String(row.dataset.id === id);
  }

  /** Upload files one after another; each failure is told by its own name. */
  async upload(files) {
    for (const file of files) {
      const row = `upload ${file.name} ${file.lastModified}`;
      try {
        this.#arrive(row, file.name, "Uploading", 0);
        const job = await api.upload(file, this.finder.into, (share) => this.#arrive(row, file.name, "Uploading", share));
        this.#arrived(row);
        this.#follow(job.id, file.name).catch(report);
      } catch (error) {
        this.#arrived(row);
        error.title = `${file.name}: ${error.title ?? "not uploaded"}`;
        report(error);
      }
    }
  }

  /** Follow a job to its end. */
  async #follow(id, name) {
    remember(id, name);
    this.#arrive(id, name, PHASES.queued, null);
    try {
      for (;;) {
        const job = await api.getJob(id);
        if (["done", "failed", "cancelled"].includes(job.status)) {
          await this.refresh();
          this.#tell(job, name);
          this.#pointOut(job.documents.map((one) => one.id));
          return;
        }
        const { phase, done, total, eta_s: left } = job.progress;
        this.#arrive(id, name, PHASES[phase] ?? PHASES.queued, total ? done / total : null, left);
        await new Promise((resume) => setTimeout(resume, POLL_MS));
      }
    } catch (error) {
      if (error.status !== 404) throw error; // a job that was cleared away: the list says what became of it
      await this.refresh();
    } finally {
      forget(id);
      this.#arrived(id);
    }
  }

  #tell(job, name) {
    const refused = job.documents.filter((one) => one.error).length;
    if (job.documents.length > 1 && refused < job.documents.length) {
      const kept = `${name}: ${count(job.documents.length - refused, "document")} added`;
      announce(refused ? `${kept}; ${count(refused, "file")} could not be read, as the list says.` : `${kept}.`);
      return;
    }
    const [result] = job.documents;
    const cause = result?.error ?? job.error;
    if (cause || job.status !== "done") report({ title: `${name} was not added`, detail: cause ?? `The job was ${job.status}.` });
    else announce([result?.deduplicated ? `${name} was there already.` : `${name} is ready.`, ...(result?.notes ?? [])].join(" "));
  }

  /** Bring what has just come into sight. */
  #pointOut(ids) {
    const row = [...byId("document-list").children].find((each) => ids.includes(each.dataset.id));
    row?.scrollIntoView({ block: "nearest" });
    if (row) row.dataset.fresh = "true";
  }

  async #remove(document) {
    if (!(await confirmDeletion(document.name))) return;
    try {
      await api.deleteDocument(document.id);
      this.known.delete(document.id);
      announce(`${document.name} is deleted.`);
      this.on.remove(document.id);
    } catch (error) {
      report(error);
    }
    await this.refresh().catch(report);
    byId("file").focus();
  }

  #arrive(key, name, label, share, left = null) {
    this.arriving.set(key, { name, label, share, left });
    this.#show();
  }

  #arrived(key) {
    this.arriving.delete(key);
    this.#show();
  }

  #show() {
    const focused = document.activeElement?.closest?.(".document")?.dataset.id;
    const rows = [...[...this.arriving].map(([key, row]) => arrivingRow(key, row)), ...this.#rows()];
    byId("document-list").replaceChildren(...rows);
    if (focused) rows.find((row) => row.dataset.id === focused)?.querySelector("button")?.focus();
    byId("documents-empty").textContent = this.finder.narrows ? "No document is called so." : "No documents yet.";
    byId("documents-empty").hidden = rows.length > 0;
    byId("documents-more").hidden = !this.cursor;
    byId("document-count").textContent = this.documents.length ? `${this.documents.length}${this.cursor ? "+" : ""}` : "";
    this.on.change([...this.known.values()], this.collections.map((one) => one.name));
  }

  /** The documents in their order; by folder, each folder behind its name. */
  #rows() {
    const order = this.finder.order;
    if (order === "newest") return this.documents.map((document) => this.#row(document));
    const sorted = [...this.documents].sort(byName);
    if (order !== "folder") return sorted.map((document) => this.#row(document));
    const folders = Map.groupBy(sorted, (document) => folderOf(document.name));
    return [...folders].flatMap(([folder, documents]) => [
      el("li", { class: "folder" }, el("h3", {}, folder || "Without a folder")),
      ...documents.map((document) => this.#row(document)),
    ]);
  }

  #row(item) {
    const failed = item.status === "failed";
    return el("li", { class: "document", "data-id": item.id, "data-kind": item.status, "data-open": item.id === this.openId },
      el("button", { type: "button", class: "document-open", title: item.name, disabled: failed, on: { click: () => this.on.open(item) } },
        icon(failed ? "doubt" : "document"),
        el("span", { class: "document-name" }, item.name),
        el("span", { class: "document-facts" }, facts(item)),
        ...item.notes.map((said) => el("span", { class: "document-note" }, said))),
      el("span", { class: "document-actions" },
        failed ? null : el("button", { type: "button", class: "quiet", title: "Ask only this document", "aria-label": `Ask only ${item.name}`, on: { click: () => this.on.scope(item) } }, icon("focus")),
        el("button", { type: "button", class: "quiet", title: "Delete", "aria-label": `Delete ${item.name}`, on: { click: () => this.#remove(item) } }, icon("delete"))));
  }
}

/** Order of documents: by name, 2 before 10. */
export function byName(one, other) {
  return one.name.localeCompare(other.name, undefined, { numeric: true });
}

function arrivingRow(key, { name, label, share, left }) {
  const wait = left > 2 ? ` · ${left < 90 ? `${Math.round(left)} s` : `${Math.round(left / 60)} min`} left` : "";
  return el("li", { class: "document", "data-id": key, "data-kind": "arriving" },
    el("span", { class: "document-open" },
      icon("document"),
      el("span", { class: "document-name" }, name),
      el("span", { class: "document-facts" }, share === null ? `${label}…` : `${label} ${Math.round(share * 100)}%${wait}`)),
    el("progress", { max: 1, value: share, "aria-label": `${label} ${name}` }));
}

function facts(item) {
  if (item.status === "failed") return item.error ?? "Failed";
  const size = item.chars === undefined ? "" : `${approximate(item.chars)} characters`;
  return [item.status === "partial" ? "read in part" : "", item.pages > 1 ? count(item.pages, "page") : "", size, item.version > 1 ? `version ${item.version}` : ""].filter(Boolean).join(" · ");
}

function approximate(number) {
  if (number < 1000) return String(number);
  if (number < 999_500) return `${Math.round(number / 1000)}k`;
  return `${(number / 1e6).toFixed(1)}M`;
}

/** Files dropped anywhere on the page are uploads. */
function wireDrop(upload) {
  const veil = byId("drop-veil");
  const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let depth = 0;
  const show = (on) => { veil.dataset.on = String(on); };
  addEventListener("dragenter", (event) => { if (holdsFiles(event)) { depth += 1; show(true); } });
  addEventListener("dragleave", (event) => { if (holdsFiles(event)) { depth = Math.max(0, depth - 1); show(depth > 0); } });
  addEventListener("dragover", (event) => { if (holdsFiles(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    depth = 0;
    show(false);
    upload([...event.dataTransfer.files]);
  });
}

function rememberedJobs() {
  return JSON.parse(sessionStorage.getItem(JOBS) ?? "[]");
}

function remember(id, name) {
  forget(id);
  sessionStorage.setItem(JOBS, JSON.stringify([...rememberedJobs(), { id, name }]));
}

function forget(id) {
  sessionStorage.setItem(JOBS, JSON.stringify(rememberedJobs().filter((job) => job.id !== id)));
}
