// Beams as a tree: what several of them begin with is drawn once.

import { drawTokens } from "./tokens.js";

/** Draws `outputs`, best first, into `parent`. */
export function drawBeams(parent, outputs) {
  const tree = document.createElement("ul");
  tree.className = "tree";
  const beams = outputs.filter((o) => o.tokens.length > 0);
  if (beams.length > 0) tree.append(drawBranch(beams, 0));
  parent.replaceChildren(tree);
}

/** The branch of `beams`, which have their first `start` tokens in common. */
function drawBranch(beams, start) {
  const [best] = beams;
  const end = beams.length === 1 ? best.tokens.length : fork(beams, start);
  const item = document.createElement("li");
  const text = document.createElement("p");
  drawTokens(text, best.tokens.slice(start, end));
  item.append(text);
  if (beams.length === 1) {
    text.append(drawScore(best));
    return item;
  }
  const branches = document.createElement("ul");
  for (const branch of group(beams, end)) branches.append(drawBranch(branch, end));
  item.append(branches);
  return item;
}

/** Where `beams` part. */
function fork(beams, start) {
  const [best] = beams;
  let end = start;
  while (best.tokens[end] && beams.every((b) => b.tokens[end]?.id === best.tokens[end].id)) end += 1;
  return end;
}

/** `beams` by their token at `at`, the best group first; one that has ended is a group of its own. */
function group(beams, at) {
  const groups = new Map();
  for (const beam of beams) {
    const key = beam.tokens[at]?.id ?? beam;
    groups.set(key, [...(groups.get(key) ?? []), beam]);
  }
  return groups.values();
}

function drawScore(beam) {
  const total = beam.tokens.reduce((sum, token) => sum + token.logprob, 0);
  const score = beam.score ?? total / beam.tokens.length;
  const element = document.createElement("span");
  element.className = beam.finish ? "score ended" : "score";
  element.classList.toggle("best", beam.rank === 1);
  const reason = beam.finish ? `, ended by ${beam.finish}` : "";
  element.textContent = `#${beam.rank}\u2002${score.toFixed(3).replace("-", "\u2212")}`;
  element.title = `rank ${beam.rank}, score ${score.toFixed(4)}, log-probability ${total.toFixed(4)}, ${beam.tokens.length} tokens${reason}`;
  return element;
}
