// The family tree of a checkpoint's jobs: each job hangs on the earlier one that its spec differs from least.

import { el } from "./dom.js";
import { outcome, jobLink, stateOf, chooser } from "./jobs.js";
import { differences, flat, short, withoutDefaults } from "./spec.js";

const MOST_CHANGES = 2;

/** Find the parent of each job: the latest earlier one with the fewest differences, or none. */
export function parents(specs) {
  // Specs come newest first.
  return specs.map((spec, i) => {
    let best = null;
    for (let j = i + 1; j < specs.length; j += 1) {
      const changes = differences([specs[j], spec]).length;
      if (changes <= MOST_CHANGES && (best === null || changes < best.changes)) best = { index: j, changes };
    }
    return best?.index ?? null;
  });
}

export function familyTree(checkpoint, jobs, specs, take) {
  const shortSpecs = specs.map((spec) => withoutDefaults(spec));
  const above = parents(shortSpecs);
  const order = [];
  const walk = (parent, depth) =>
    above.forEach((own, i) => {
      if (own !== parent) return;
      order.push({ i, depth });
      walk(i, depth + 1);
    });
  walk(null, 0);
  const told = new Map(order.map(({ i, depth }) => [jobs[i].id, { i, depth, change: change(shortSpecs, above, i) }]));
  const lineOf = (job) => {
    const { i, depth, change: text } = told.get(job.id);
    const line = el(
      "div",
      { class: "row branch" },
      stateOf(job),
      el("a", { href: jobLink(job.id) }, text),
      el("span", { class: "muted small" }, outcome(job)),
      el(
        "button",
        {
          type: "button",
          class: "quiet",
          "aria-label": `Take the spec of ${job.id}`,
          onclick: () => take(withoutDefaults(specs[i])),
        },
        "Take this spec",
      ),
    );
    line.style.setProperty("--depth", Math.min(depth, 8));
    return line;
  };
  return el(
    "section",
    { class: "stack", "aria-label": "Jobs of this checkpoint" },
    el("h2", {}, "What became of it"),
    el("p", { class: "muted small" }, `Jobs on ${checkpoint}. A job stands below the earlier one that it changes.`),
    chooser(
      order.map(({ i }) => jobs[i]),
      { lineOf },
    ),
  );
}

/** What a job changes in its parent, or its whole spec in short. */
function change(specs, above, i) {
  const parent = above[i];
  if (parent === null) return short(specs[i]);
  const [before, after] = [flat(specs[parent]), flat(specs[i])];
  const paths = differences([specs[parent], specs[i]]);
  if (paths.length === 0) return "the same again";
  return paths.map((path) => `${path} ${before[path] ?? "–"} → ${after[path] ?? "–"}`).join(", ");
}
