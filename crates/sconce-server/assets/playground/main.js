// The page: from what is entered to a request, and from its answer to what is shown.

import { Exchange } from "./answers.js";
import { ApiError, get, stream } from "./requests.js";
import { Settings, recall, remember } from "./settings.js";
import { explainTokens } from "./tokens.js";

const KEY = "sconce.key";
const MODE = "sconce.mode";
const MODEL = "sconce.model";
/** How long to wait for a server that is still loading, in milliseconds. */
const LOADING_PAUSE = 1500;

const at = (id) => document.getElementById(id);
const [log, input, notice, model, key] = ["log", "input", "notice", "model", "key"].map(at);
const modes = document.querySelectorAll("input[name=mode]");
const settings = new Settings(at("settings"));
let exchanges = [];
/** What stops the answer that is under way. */
let running = null;

const isPrompt = () => document.querySelector("input[name=mode]:checked").value === "prompt";

/** The path and body of a request for `text`. */
function request(text) {
  const fields = settings.values();
  const body = { model: model.value };
  const system = at("system").value;
  if (isPrompt()) {
    body.prompt = text;
  } else {
    const before = exchanges.filter((e) => !e.isPrompt && e.text);
    const turns = before.flatMap((e) => [
      { role: "user", content: e.question },
      { role: "assistant", content: e.text },
    ]);
    const messages = system ? [{ role: "system", content: system }, ...turns] : turns;
    body.messages = [...messages, { role: "user", content: text }];
  }
  Object.assign(body, fields, { stream: true });
  const isShown = at("probabilities").checked;
  const alternatives = Number(at("alternatives").value);
  // The best so far can only be shown where they can be replaced as a whole.
  if (fields.use_beam_search || fields.best_of > (fields.n ?? 1)) {
    // A tree of beams is made of tokens, which come with their log-probabilities.
    if (isShown || fields.use_beam_search) body.logprobs = isShown ? alternatives : 0;
    return ["/generate", body];
  }
  body.stream_options = { include_usage: true };
  if (isPrompt()) {
    if (isShown) body.logprobs = alternatives;
    return ["/v1/completions", body];
  }
  if (isShown) Object.assign(body, { logprobs: true, top_logprobs: alternatives });
  return ["/v1/chat/completions", body];
}

async function send() {
  const text = input.value;
  if (running || !text || !model.value) return;
  say("");
  const [path, body] = request(text);
  const exchange = new Exchange(text, body, isPrompt());
  exchange.element.classList.toggle("plain", !at("probabilities").checked);
  at("empty")?.remove();
  log.append(exchange.element);
  log.scrollTop = log.scrollHeight;
  if (!isPrompt()) input.value = "";
  running = new AbortController();
  showRunning(true);
  try {
    for await (const record of stream(path, body, key.value, running.signal)) exchange.take(record);
    exchange.end();
  } catch (error) {
    fail(exchange, error);
  } finally {
    running = null;
    showRunning(false);
  }
  if (exchange.element.isConnected) exchanges.push(exchange);
}

function fail(exchange, error) {
  if (error.name === "AbortError") return exchange.end("stopped");
  exchange.end("failed");
  refused(error);
  if (exchange.text) return;
  // Nothing has come of it: it can be sent again.
  exchange.element.remove();
  if (!input.value) input.value = exchange.question;
}

function refused(error) {
  if (!(error instanceof ApiError)) throw error;
  say(error.message);
  if (error.status === 401) {
    say("This server wants an API key: enter it in the settings.");
    showPanel(true);
    key.focus();
  } else if (settings.fields.has(error.param)) {
    showPanel(true);
    settings.refuse(error.param);
  }
}

function say(text) {
  notice.textContent = text;
  notice.hidden = !text;
}

function showRunning(isRunning) {
  at("cancel").hidden = !isRunning;
  at("send").hidden = isRunning;
  log.setAttribute("aria-busy", String(isRunning));
}

function showPanel(isShown) {
  document.body.classList.toggle("no-panel", !isShown);
  at("toggle").setAttribute("aria-expanded", String(isShown));
}

function showMode() {
  at("conversation").hidden = isPrompt();
  input.rows = isPrompt() ? 5 : 2;
  input.placeholder = isPrompt() ? "A text to be continued" : "A message";
  at("hint").textContent = isPrompt() ? "Ctrl+Enter sends" : "Enter sends, Shift+Enter begins a line";
}

function clear() {
  running?.abort();
  exchanges = [];
  log.replaceChildren();
  say("");
  input.focus();
}

/** Fills in the served models, as soon as there are any. */
async function listModels() {
  try {
    const { data } = await get("/v1/models", key.value);
    const kept = recall("localStorage", MODEL);
    model.replaceChildren(...data.map(({ id }) => new Option(id, id, id === kept, id === kept)));
    say("");
  } catch (error) {
    refused(error);
    if (error.status === 503 || error.status === 0) setTimeout(listModels, LOADING_PAUSE);
  }
}

function listen() {
  at("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  input.addEventListener("keydown", (event) => {
    const sends = isPrompt() ? event.ctrlKey || event.metaKey : !event.shiftKey;
    if (event.key !== "Enter" || !sends || event.isComposing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  at("cancel").addEventListener("click", () => running?.abort());
  at("clear").addEventListener("click", clear);
  at("toggle").addEventListener("click", () => showPanel(document.body.classList.contains("no-panel")));
  for (const mode of modes) {
    mode.checked = mode.value === (recall("localStorage", MODE) ?? "chat");
    mode.addEventListener("change", () => {
      remember("localStorage", MODE, mode.value);
      showMode();
    });
  }
  model.addEventListener("change", () => remember("localStorage", MODEL, model.value));
  key.value = recall("sessionStorage", KEY) ?? "";
  key.addEventListener("change", () => {
    remember("sessionStorage", KEY, key.value);
    listModels();
  });
  // What is added at the end stays in view where the end was.
  let isAtEnd = true;
  log.addEventListener("scroll", () => { isAtEnd = log.scrollTop + log.clientHeight > log.scrollHeight - 40; });
  log.addEventListener("drawn", () => { if (isAtEnd) log.scrollTop = log.scrollHeight; });
  explainTokens(log, at("tip"));
}

listen();
showPanel(matchMedia("(min-width: 60rem)").matches);
showMode();
try {
  settings.build(await get("/openapi.json"));
} catch (error) {
  refused(error);
}
await listModels();
