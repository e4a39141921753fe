// An exchange: what was asked, what is answered to it while it comes, and how fast.

import { drawBeams } from "./beams.js";
import { drawTokens, markOutside, ofChat, ofCompletion, ofGenerate } from "./tokens.js";

/** One request and its answers, with the element that shows them. */
export class Exchange {
  /** `question` is what to show of the request `body`; `isPrompt`: answers go on from it. */
  constructor(question, body, isPrompt) {
    this.question = question;
    this.isPrompt = isPrompt;
    this.isBeams = Boolean(body.use_beam_search);
    this.outputs = [];
    this.picked = 0;
    this.usage = null;
    this.numChunks = 0;
    this.start = performance.now();
    this.element = make("article", "exchange");
    this.answers = make("div", this.isBeams ? "beams" : "answers");
    this.stats = make("div", "stats", "waiting");
    const details = make("details");
    details.append(make("summary", "", "request"), make("pre", "", JSON.stringify(body, null, 2)));
    this.stats.append(details);
    this.element.append(make("p", "question", question), this.answers, this.stats);
  }

  /** Takes a record of any of the three forms. */
  take(record) {
    this.usage = record.usage ?? this.usage;
    if (record.outputs) {
      this.outputs = record.outputs.map((o, i) => ({
        rank: i + 1,
        text: o.text,
        tokens: ofGenerate(o.logprobs),
        finish: o.finish_reason,
        score: o.beam_score,
      }));
    }
    for (const choice of record.choices ?? []) this.append(choice);
    const now = performance.now();
    if (this.outputs.some((o) => o.text || o.tokens.length || o.thought?.text || o.thought?.tokens.length)) {
      this.first ??= now;
      this.last = now;
      this.numChunks += 1;
    }
    this.drawSoon();
  }

  append(choice) {
    const output = (this.outputs[choice.index] ??= {
      rank: choice.index + 1,
      text: "",
      tokens: [],
      finish: null,
      decoder: new TextDecoder(),
      thought: { text: "", tokens: [], decoder: new TextDecoder() },
    });
    const thought = choice.delta?.reasoning_content;
    const part = thought === undefined ? output : output.thought;
    part.text += thought ?? choice.delta?.content ?? choice.text ?? "";
    const read = choice.delta ? ofChat : ofCompletion;
    part.tokens.push(...read(choice.logprobs, part.decoder));
    output.finish = choice.finish_reason ?? output.finish;
  }

  /** The text with which a conversation goes on. */
  get text() {
    return this.outputs[this.picked]?.text ?? "";
  }

  /** Ends it; `note` says how, where it is not by itself. */
  end(note) {
    this.note = note;
    this.isDone = true;
    this.outputs.forEach(markOutside);
    this.draw();
  }

  /** Records can come faster than they can be seen. */
  drawSoon() {
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = undefined;
    if (this.isBeams) {
      drawBeams(this.answers, this.outputs);
    } else {
      this.outputs.forEach((output, i) => this.drawOutput(output, i));
    }
    this.stats.firstChild.textContent = this.summary();
    this.element.dispatchEvent(new Event("drawn", { bubbles: true }));
  }

  drawOutput(output, i) {
    const cards = this.answers.children;
    while (cards.length <= i) this.answers.append(this.card(cards.length));
    const card = cards[i];
    const text = card.querySelector(".answer");
    if (output.thought) this.drawPart(card.querySelector(".thought"), output.thought);
    this.drawPart(text, output);
    if (this.isPrompt) text.prepend(text.querySelector(".prompt") ?? make("span", "prompt", this.question));
    card.querySelector(".finish").textContent = output.finish ?? "";
  }

  /** Draws what is thought, or what is said. */
  drawPart(text, output) {
    // What only grows is added to; what is replaced as a whole is drawn anew, and all of it in the end.
    const isGrown = output.numDrawn > 0 && output.decoder && !this.isDone;
    if (!isGrown) text.textContent = output.tokens.length > 0 ? "" : output.text;
    drawTokens(text, isGrown ? output.tokens.slice(output.numDrawn) : output.tokens);
    output.numDrawn = output.tokens.length;
  }

  card(i) {
    const card = make("div", "card");
    const head = make("p", "head");
    const pick = make("button", "pick", `${i + 1}`);
    pick.type = "button";
    pick.title = "Continue the conversation with this answer";
    pick.setAttribute("aria-pressed", String(i === this.picked));
    pick.addEventListener("click", () => {
      this.picked = i;
      this.element.querySelectorAll(".pick").forEach((other, j) => other.setAttribute("aria-pressed", String(j === i)));
    });
    head.append(pick, make("span", "finish"));
    card.append(head, make("p", "thought"), make("p", "answer"));
    return card;
  }

  summary() {
    if (this.first === undefined) return this.note ?? (this.isDone ? "no tokens" : "waiting");
    const seen = this.outputs.reduce((sum, o) => sum + o.tokens.length + (o.thought?.tokens.length ?? 0), 0) || this.numChunks;
    const count = this.usage?.completion_tokens ?? seen;
    const seconds = (this.last - this.first) / 1000;
    const parts = [`first token ${Math.round(this.first - this.start)}\u2009ms`];
    if (count > 1 && seconds > 0) parts.push(`${((count - 1) / seconds).toFixed(1)} tok/s`);
    parts.push(`${count} ${count === 1 ? "token" : "tokens"}`);
    if (this.usage) parts.push(`${this.usage.prompt_tokens} in prompt`);
    const reasons = [...new Set(this.outputs.map((o) => o?.finish).filter(Boolean))];
    parts.push(this.note ?? reasons.join(", "));
    return parts.filter(Boolean).join(" \u00b7 ");
  }
}

/** An element with a class and text. */
export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}
