/** Tables: the same questions asked of every document; a cell opens its source. */

import * as api from "./api.js";
import { download } from "./actions.js";
import { byId, count, el, icon } from "./dom.js";
import { report } from "./notices.js";

const LOOK_MS = 1000;
const PAGE = 200;
const OPEN = ["queued", "running"];

export class Tables {
  /** @param {Function} open shows a passage: {document, name, start, end, …} */
  constructor(open) {
    this.open = open;
    this.shown = null; // id of the table whose rows are shown
    byId("table-form").addEventListener("submit", (event) => { event.preventDefault(); this.#create().catch(report); });
    byId("tables-dialog").addEventListener("close", () => { this.shown = null; });
    byId("table-back").addEventListener("click", () => this.#list().catch(report));
  }

  /** Show the tables that there are, and the form of a new one. */
  async show(collections) {
    const dialog = byId("tables-dialog");
    if (dialog.open) return;
    const options = collections.map((name) => el("option", { value: name }, name));
    byId("table-collection").replaceChildren(el("option", { value: "" }, "All documents"), ...options);
    try {
      await this.#list();
      dialog.showModal();
    } catch (error) {
      report(error);
    }
  }

  async #list() {
    this.shown = null;
    const { tables } = await api.listTables();
    byId("table-view").hidden = true;
    byId("table-start").hidden = false;
    byId("table-list").replaceChildren(...tables.map((one) => this.#entry(one)));
  }

  #entry(one) {
    const title = one.columns.map((column) => column.question).join(" · ");
    const node = el("li", {},
      el("button", { type: "button", class: "quiet conversation", on: { click: () => this.#enter(one.id) } },
        el("span", {}, title), el("small", {}, progress(one))),
      el("button", { type: "button", class: "quiet square", title: "Delete", "aria-label": `Delete the table ${title}`, on: { click: () => this.#remove(one, node) } }, icon("delete")));
    return node;
  }

  async #remove(one, node) {
    try {
      await api.deleteTable(one.id);
      const next = node.nextElementSibling ?? node.previousElementSibling;
      node.remove();
      (next?.querySelector("button") ?? byId("table-questions")).focus();
    } catch (error) {
      report(error);
    }
  }

  async #create() {
    const questions = byId("table-questions").value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (!questions.length) return;
    const collection = byId("table-collection").value;
    const made = await api.createTable({ columns: questions.map(column), ...(collection ? { collection } : {}) });
    byId("table-questions").value = "";
    await this.#enter(made.id);
  }

  /** Show a table, and its rows as they come. */
  async #enter(id) {
    this.shown = id;
    byId("table-start").hidden = true;
    byId("table-view").hidden = false;
    byId("table-rows").replaceChildren();
    try {
      for (;;) {
        const [table, rows] = [await api.getTable(id), await allRows(id)];
        if (this.shown !== id) return;
        this.#fill(table, rows);
        if (!OPEN.includes(table.status)) return;
        await new Promise((resume) => setTimeout(resume, LOOK_MS));
      }
    } catch (error) {
      if (this.shown === id) report(error);
    }
  }

  #fill(table, rows) {
    byId("table-progress").textContent = progress(table);
    const act = (label, click) => el("button", { type: "button", class: "quiet", on: { click } }, label);
    byId("table-actions").replaceChildren(
      act("CSV", () => save(table, "csv")), act("Spreadsheet", () => save(table, "xlsx")),
      OPEN.includes(table.status) ? act("Stop", () => api.cancelTable(table.id).catch(report)) : "");
    const head = el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Document"), ...table.columns.map((one) => el("th", { scope: "col" }, one.question))));
    const body = el("tbody", {}, ...rows.map((row) => el("tr", {},
      el("th", { scope: "row" }, row.name),
      ...table.columns.map((_, i) => el("td", {}, this.#cell(row, row.cells?.[i]))))));
    byId("table-rows").replaceChildren(head, body);
  }

  #cell(row, cell) {
    if (!cell) return el("span", { class: "blank-cell" }, row.cells ? "–" : "…");
    const [source] = cell.citations;
    if (cell.value === null) return el("span", { class: "blank-cell", title: cell.error ?? cell.blank }, "–");
    const show = () => {
      byId("tables-dialog").close();
      this.open({ ...source, document: row.document, name: row.name, verified: true });
    };
    return el("button", { type: "button", class: "quiet cell", title: source.cited_text, on: { click: show } }, String(cell.value));
  }
}

/** A line of the form: a question, and of which type its answers are where it ends in "#number" or "#date". */
export function column(line) {
  const [, question, type] = /^(.*?)(?:\s+#(number|date))?$/.exec(line);
  return type ? { question, type } : { question };
}

function progress(table) {
  const words = { queued: "waiting", running: "asking", done: "done", cancelled: "stopped" };
  return `${table.rows_done} of ${count(table.rows_total, "document")} · ${words[table.status]}`;
}

async function allRows(id) {
  const rows = [];
  for (let after = -1; after !== null;) {
    const page = await api.tableRows(id, after, PAGE);
    rows.push(...page.rows);
    after = page.next;
  }
  return rows;
}

async function save(table, form) {
  try {
    download(`table.${form}`, await api.exportTable(table.id, form), "application/octet-stream");
  } catch (error) {
    report(error);
  }
}
