/** The REST interface: one function a route, one error class for whatever goes wrong. */

import { events } from "./sse.js";

const KEY = "folio.key";
let askForKey = async () => false;

/** What the service, or the way to it, answered instead of a result. */
export class ApiError extends Error {
  constructor(title, detail = "", status = 0) {
    super(detail || title);
    this.title = title;
    this.detail = detail;
    this.status = status;
  }
}

/** Whom to ask for a key after a 401: an async function of (reason) that returns whether there is a new one. */
export function onUnauthorised(handler) {
  askForKey = handler;
}

/** The key of this tab, or "". */
export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** Keep a key for this tab; "" forgets it. */
export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

/** Whether the service takes requests: {ready, detail, ...what it says of itself}. */
export async function readiness() {
  const response = await fetch("readyz", { cache: "no-store" });
  const said = await response.json().catch(() => ({}));
  return { ...said, ready: response.ok };
}

/** The modes of answering that this service knows. */
export async function modes() {
  const description = await json("openapi.json");
  return description.components.schemas.AnswerRequest.properties.mode.enum;
}

/** One page of documents; `wanted` is of the route's `search`, `collection` and `order`. */
export function listDocuments(cursor = null, wanted = {}) {
  const query = new URLSearchParams({ limit: "100", ...wanted });
  if (cursor) query.set("cursor", cursor);
  return json(`v1/documents?${query}`);
}

export const listCollections = () => json("v1/collections");
export const deleteDocument = (id) => send(`v1/documents/${encodeURIComponent(id)}`, { method: "DELETE" });
export const getJob = (id) => json(`v1/jobs/${encodeURIComponent(id)}`);

export const getDocument = (id) => json(`v1/documents/${encodeURIComponent(id)}`);
export const summaryOf = (id) => json(`v1/documents/${encodeURIComponent(id)}/summary`);
export const suggestedQuestions = (id) => json(`v1/documents/${encodeURIComponent(id)}/questions`);

/** Characters start to end of the stored text, exactly: a byte order mark is a character that offsets count. */
export async function documentText(id, start, end) {
  const response = await send(`v1/documents/${encodeURIComponent(id)}/text?start=${start}&end=${end}`);
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(await response.arrayBuffer());
}

/** A page of a PDF as a blob. */
export async function pageImage(id, number, width) {
  return (await send(`v1/documents/${encodeURIComponent(id)}/pages/${number}/image?width=${width}`)).blob();
}

const conversation = (id) => `v1/conversations/${encodeURIComponent(id)}`;
export const listConversations = () => json("v1/conversations");
export const createConversation = (title) => json("v1/conversations", withBody("POST", { title }));
export const renameConversation = (id, title) => json(conversation(id), withBody("PUT", { title }));
export const deleteConversation = (id) => send(conversation(id), { method: "DELETE" });
export const conversationTurns = (id) => json(`${conversation(id)}/turns`);
export const keepTurn = (id, ordinal, turn) => json(`${conversation(id)}/turns/${ordinal}`, withBody("PUT", turn));

/** As Markdown; its references are footnotes or bibtex. */
export async function exportConversation(id, references) {
  return (await send(`${conversation(id)}/export?references=${references}`)).text();
}

const table = (id) => `v1/tables/${encodeURIComponent(id)}`;
export const listTables = () => json("v1/tables");
export const createTable = (spec) => json("v1/tables", withBody("POST", spec));
export const getTable = (id) => json(table(id));
export const tableRows = (id, after, limit) => json(`${table(id)}/rows?after=${after}&limit=${limit}`);
export const cancelTable = (id) => send(`${table(id)}/cancel`, { method: "POST" });
export const deleteTable = (id) => send(table(id), { method: "DELETE" });

/** As a file: csv or xlsx. */
export async function exportTable(id, form) {
  return (await send(`${table(id)}/export?format=${form}`)).blob();
}

export const listWatches = () => json("v1/watches");
export const addWatch = (spec) => json("v1/watches", withBody("POST", spec));
export const watchChanges = (id) => json(`v1/watches/${encodeURIComponent(id)}/changes`);
export const deleteWatch = (id) => send(`v1/watches/${encodeURIComponent(id)}`, { method: "DELETE" });

/** Whether an answer comes out again: what the service finds of its receipt. */
export const verifyReceipt = (receipt) => json("v1/receipts/verify", withBody("POST", receipt));

/** Upload one file into a collection; `onProgress` gets the share sent, 0 to 1. Resolves to the service's answer. */
export async function upload(file, collection, onProgress) {
  const attempt = () => new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not report the progress of an upload
    const form = new FormData();
    form.append("file", file, file.name);
    form.append("collection", collection);
    request.open("POST", "v1/documents");
    if (key()) request.setRequestHeader("Authorization", `Bearer ${key()}`);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onload = () => resolve(new Response(request.responseText, { status: request.status }));
    request.onerror = () => reject(unreachable());
    request.send(form);
  });
  const response = await withKey(attempt);
  return response.json();
}

/**
 * Ask a question.
 * @param {Object} question body of POST /v1/answer
 * @param {AbortSignal} signal stops the answer; the service frees what it held
 * @yields {{type: string, data: Object}}
 */
export async function* answer(question, signal) {
  const response = await send("v1/answer", { ...withBody("POST", { ...question, stream: true }), signal });
  for await (const { event, data } of events(response.body)) yield { type: event, data: JSON.parse(data) };
}

async function json(path, options = {}) {
  return (await send(path, options)).json();
}

function withBody(method, value) {
  return { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) };
}

async function send(path, options = {}) {
  return withKey(async () => {
    const headers = new Headers(options.headers);
    if (key()) headers.set("Authorization", `Bearer ${key()}`);
    try {
      return await fetch(path, { cache: "no-store", ...options, headers });
    } catch (error) {
      throw error.name === "AbortError" ? error : unreachable();
    }
  });
}

/** Run an attempt; after a 401, ask for a key and try again for as long as one is given. */
async function withKey(attempt) {
  for (;;) {
    const response = await attempt();
    if (response.ok) return response;
    const problem = await response.json().catch(() => ({}));
    const error = new ApiError(problem.title ?? `Error ${response.status}`, problem.detail ?? "", response.status);
    if (response.status !== 401 || !(await askForKey(key() ? error.detail : ""))) throw error;
  }
}

function unreachable() {
  return new ApiError("The service does not answer", "It may have stopped, or the connection is lost.");
}
