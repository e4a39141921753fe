// The fields of a request: inputs that are made of what /openapi.json says of them, and kept from visit to visit.

import { make } from "./answers.js";

const GROUPS = {
  Sampling: ["temperature", "top_p", "top_k", "min_p", "seed"],
  Length: ["max_tokens", "min_tokens", "stop", "ignore_eos"],
  Answers: ["n", "best_of"],
  Penalties: ["presence_penalty", "frequency_penalty", "repetition_penalty"],
  "Beam search": ["use_beam_search", "length_penalty", "early_stopping", "beam_length"],
  Text: ["logprobs_mode", "skip_special_tokens"],
};
/** What a beam search does not take, and what is of no use without one. */
const NOT_WITH_BEAMS = ["temperature", "top_p", "top_k", "min_p", "seed"];
const WITH_BEAMS = ["length_penalty", "early_stopping", "beam_length"];
const DEFAULT_BEAMS = 4;
const STORE = "sconce.playground";

/** The inputs of a form. */
export class Settings {
  constructor(form) {
    this.form = form;
    this.fields = new Map();
    form.addEventListener("input", () => this.changed());
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(() => this.changed()));
  }

  /** Makes the inputs of the request fields, and fills in what was kept. */
  build(openapi) {
    const schemas = openapi.components.schemas.GenerateRequest.properties;
    const groups = Object.entries(GROUPS).map(([title, names]) => {
      const group = make("fieldset");
      group.append(make("legend", "", title), ...names.map((name) => this.field(name, schemas[name])));
      return group;
    });
    this.form.querySelector("#fields").replaceChildren(...groups);
    this.restore();
    this.changed();
  }

  field(name, schema) {
    const label = make("label", "field");
    const input = inputOf(name, schema);
    input.id = `field-${name}`;
    label.title = schema.description;
    const doc = make("small", "", schema.description);
    doc.id = `doc-${name}`;
    input.setAttribute("aria-describedby", doc.id);
    label.append(make("span", "", name), input, doc);
    this.fields.set(name, { input, schema });
    return label;
  }

  changed() {
    const hasBeams = this.fields.get("use_beam_search")?.input.checked;
    for (const [name, { input }] of this.fields) {
      input.disabled = (hasBeams ? NOT_WITH_BEAMS : WITH_BEAMS).includes(name);
      input.removeAttribute("aria-invalid");
    }
    const n = this.fields.get("n");
    if (n) n.input.placeholder = hasBeams ? DEFAULT_BEAMS : n.schema.default;
    this.keep();
  }

  /** The request fields that say something. */
  values() {
    const values = {};
    for (const [name, { input, schema }] of this.fields) {
      const value = input.disabled ? null : valueOf(input);
      if (value !== null && value !== schema.default) values[name] = value;
    }
    if (values.use_beam_search) values.n ??= values.best_of ?? DEFAULT_BEAMS;
    return values;
  }

  /** Shows that the server refuses a field. */
  refuse(name) {
    const { input } = this.fields.get(name);
    input.setAttribute("aria-invalid", "true");
    input.focus();
  }

  /** Everything that can be set. */
  inputs() {
    return [...this.form.elements].filter((e) => e.id && e.tagName !== "FIELDSET");
  }

  keep() {
    const kept = this.inputs().map((e) => [e.id, e.type === "checkbox" ? e.checked : e.value]);
    remember("localStorage", STORE, JSON.stringify(Object.fromEntries(kept)));
  }

  restore() {
    let kept = {};
    try {
      kept = JSON.parse(recall("localStorage", STORE) ?? "{}") ?? {};
    } catch {
      // Kept by another version, or changed by hand.
    }
    for (const input of this.inputs()) {
      if (!(input.id in kept)) continue;
      if (input.type === "checkbox") input.checked = kept[input.id];
      else if (input.tagName !== "SELECT" || [...input.options].some((o) => o.value === kept[input.id])) input.value = kept[input.id];
    }
  }
}

/** Keeps a value in `storage`, localStorage or sessionStorage, where the browser lets pages do so. */
export function remember(storage, name, value) {
  try {
    window[storage].setItem(name, value);
  } catch {
    // The page works without.
  }
}

/** What was kept; null where there is nothing. */
export function recall(storage, name) {
  try {
    return window[storage].getItem(name);
  } catch {
    return null;
  }
}

function inputOf(name, schema) {
  const schemas = [schema, ...(schema.anyOf ?? [])];
  const kinds = schemas.flatMap((s) => s.type ?? []);
  const choices = schemas.flatMap((s) => s.enum ?? []);
  if (choices.length > 0) {
    const select = make("select");
    const all = kinds.includes("boolean") ? [false, true, ...choices] : choices;
    for (const choice of all) {
      const option = make("option", "", String(choice));
      option.value = JSON.stringify(choice);
      option.defaultSelected = choice === schema.default;
      select.append(option);
    }
    return select;
  }
  if (kinds.includes("array")) {
    const lines = make("textarea", "lines");
    lines.rows = 2;
    lines.placeholder = "one a line";
    return lines;
  }
  const input = make("input");
  if (kinds.includes("boolean")) {
    input.type = "checkbox";
    input.defaultChecked = schema.default;
    return input;
  }
  input.type = "number";
  input.step = kinds.includes("integer") ? 1 : "any";
  input.min = schema.minimum ?? "";
  input.max = schema.maximum ?? "";
  input.placeholder = schema.default ?? "";
  return input;
}

/** What an input says; null where nothing is entered. */
function valueOf(input) {
  if (input.type === "checkbox") return input.checked;
  if (input.tagName === "SELECT") return JSON.parse(input.value);
  if (input.value === "") return null;
  return input.tagName === "TEXTAREA" ? input.value.split("\n").filter(Boolean) : Number(input.value);
}
