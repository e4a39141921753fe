// Tokens: read from each form of log-probabilities, drawn with their probabilities, explained in a tooltip.

/** The token of an element. */
const TOKENS = new WeakMap();

/** Tokens of /generate. */
export function ofGenerate(logprobs) {
  return (logprobs ?? []).map((l) => ({ id: l.token_id, text: l.token, logprob: l.logprob, top: alternatives(l.top_logprobs) }));
}

/** Tokens of a chunk of /v1/chat/completions. A character of several tokens is the last one's text. */
export function ofChat(logprobs, decoder) {
  return (logprobs?.content ?? []).map((l) => {
    const text = decoder.decode(new Uint8Array(l.bytes), { stream: true });
    return { text, logprob: l.logprob, top: alternatives(l.top_logprobs) };
  });
}

/** Tokens of a chunk of /v1/completions, which spells bytes that are no text as bytes:\xc3. */
export function ofCompletion(logprobs, decoder) {
  return (logprobs?.tokens ?? []).map((spelling, i) => {
    const bytes = spelling.startsWith("bytes:\\x")
      ? Uint8Array.from(spelling.slice("bytes:".length).matchAll(/\\x(..)/g), (m) => parseInt(m[1], 16))
      : new TextEncoder().encode(spelling);
    const top = Object.entries(logprobs.top_logprobs[i] ?? {}).map(([text, logprob]) => ({ text, logprob }));
    const text = decoder.decode(bytes, { stream: true });
    // The token itself is always among them, so that there may be none beside it.
    return { text, logprob: logprobs.token_logprobs[i], top: top.length > 1 ? top.sort((a, b) => b.logprob - a.logprob) : [] };
  });
}

function alternatives(top) {
  return (top ?? []).map((l) => ({ text: l.token, logprob: l.logprob }));
}

/** Marks tokens that are no part of the text: end tokens, and stop texts that were cut off. */
export function markOutside({ text, tokens }) {
  // /generate spells parts of a character as such, so that lengths say nothing.
  if (tokens.some((token) => token.text.includes("\ufffd"))) return;
  let length = 0;
  for (const token of tokens) {
    token.isOutside = length >= text.length;
    length += token.text.length;
  }
}

/** Adds `tokens` to `parent`. */
export function drawTokens(parent, tokens) {
  for (const token of tokens) {
    if (!token.text) continue;
    const element = document.createElement("span");
    element.className = /^\n+$/.test(token.text) ? "token line" : "token";
    element.textContent = token.text;
    element.classList.toggle("outside", Boolean(token.isOutside));
    element.style.setProperty("--p", Math.exp(token.logprob).toFixed(4));
    element.tabIndex = parent.querySelector(".token") ? -1 : 0;
    TOKENS.set(element, token);
    parent.append(element);
  }
}

/** Shows, in `tip`, the token of `area` that is pointed at or has the focus; arrow keys go from one to the next. */
export function explainTokens(area, tip) {
  const hide = () => { tip.hidden = true; };
  const show = (event) => {
    const token = TOKENS.get(event.target);
    if (!token) return hide();
    event.target.setAttribute("aria-describedby", tip.id);
    tip.replaceChildren(...explanation(token));
    tip.hidden = false;
    place(tip, event.target.getClientRects()[0]);
  };
  area.addEventListener("pointerover", show);
  area.addEventListener("focusin", show);
  area.addEventListener("pointerleave", hide);
  area.addEventListener("focusout", hide);
  area.addEventListener("scroll", hide);
  area.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step || !TOKENS.has(event.target)) return;
    event.preventDefault();
    const all = [...event.target.closest(".answer, .tree").querySelectorAll(".token")];
    all[all.indexOf(event.target) + step]?.focus();
  });
}

function explanation(token) {
  const isChosen = (other) => other.text === token.text && other.logprob === token.logprob;
  const head = row("chosen", token);
  head.append(cell("exact", `logprob ${token.logprob.toFixed(3)}`));
  const others = token.top.filter((other) => !isChosen(other));
  return [head, ...others.map((other) => row("other", other))];
}

function row(kind, { text, logprob }) {
  const element = cell(kind, "");
  const p = Math.exp(logprob);
  const bar = cell("bar", "");
  bar.style.setProperty("--p", p.toFixed(4));
  element.append(cell("spelling", JSON.stringify(text).slice(1, -1).replaceAll(" ", "\u00b7")), bar, cell("share", percent(p)));
  return element;
}

function cell(kind, text) {
  const element = document.createElement("span");
  element.className = kind;
  element.textContent = text;
  return element;
}

function percent(p) {
  const number = p < 0.0001 ? "<0.01" : (p * 100).toPrecision(p < 0.01 ? 1 : 3);
  return `${number}\u2009%`;
}

function place(tip, rect) {
  const gap = 6;
  const left = Math.min(rect.left, innerWidth - tip.offsetWidth - gap);
  const below = rect.bottom + gap;
  const top = below + tip.offsetHeight > innerHeight ? rect.top - tip.offsetHeight - gap : below;
  tip.style.left = `${Math.max(gap, left)}px`;
  tip.style.top = `${Math.max(gap, top)}px`;
}
