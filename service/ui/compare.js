// Two to five jobs of one checkpoint beside each other.

import { each, get, jobPath } from "./api.js";
import { scatter } from "./charts.js";
import { el, fill, table } from "./dom.js";
import { bytes, error as errorText, percent, whole } from "./format.js";
import { pattern, span } from "./grouping.js";
import { MOST_COMPARED, jobLink } from "./jobs.js";
import { sum } from "./layers.js";
import { differences, flat, short, withoutDefaults } from "./spec.js";

const MOST_ROWS = 100;
const LETTERS = "ABCDE";
const UNITS = [
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
  [1, ""],
];

export async function showCompare(view, { query, signal }) {
  const ids = (query.get("jobs") ?? "").split(",").filter(Boolean);
  if (ids.length < 2 || ids.length > MOST_COMPARED)
    throw new Error("Choose two to five finished jobs of one checkpoint in the list of jobs.");
  const found = await each(ids, async (id) => {
    const [job, report] = await Promise.all([get(jobPath(id), { signal }), get(jobPath(id, "/report"), { signal })]);
    return { job, report, spec: withoutDefaults(job.spec), totals: report.totals };
  });
  const [first] = found;
  if (found.some(({ job }) => job.checkpoint !== first.job.checkpoint))
    throw new Error("These are jobs of different checkpoints. Choose jobs of one.");
  found.forEach((one, i) => {
    one.letter = LETTERS[i];
  });
  const chart = el("div");
  const by = el(
    "select",
    { "aria-label": "Quality", onchange: () => drawScatter(chart, found, size.value, by.value) },
    qualities(found).map(([name, text]) => el("option", { value: name }, text)),
  );
  const size = el(
    "select",
    { "aria-label": "Size", onchange: () => drawScatter(chart, found, size.value, by.value) },
    el("option", { value: "bytes_after" }, "bytes"),
    el("option", { value: "parameters_after" }, "parameters"),
  );
  const differing = el("input", {
    type: "checkbox",
    onchange: () => fill(layers, layerTable(found, differing.checked)),
  });
  const layers = el("div");
  fill(
    view,
    el(
      "div",
      {},
      el("h1", {}, `${found.length} jobs compared`),
      el(
        "p",
        { class: "muted" },
        "on ",
        el("a", { href: `#/checkpoints/${encodeURIComponent(first.job.checkpoint)}` }, first.job.checkpoint),
      ),
    ),
    el("section", { class: "panel" }, totalsTable(found)),
    el(
      "section",
      { class: "panel" },
      el("div", { class: "head" }, el("h2", {}, "Quality against size"), el("div", { class: "row" }, size, by)),
      chart,
    ),
    el("section", { class: "panel" }, el("h2", {}, "Specs"), specTable(found)),
    el(
      "section",
      { class: "panel stack" },
      el(
        "div",
        { class: "head" },
        el("h2", {}, "Layer by layer"),
        el("label", { class: "check" }, differing, "only where they differ"),
      ),
      layers,
    ),
  );
  drawScatter(chart, found, size.value, by.value);
  fill(layers, layerTable(found, false));
}

function qualities(found) {
  const all = [
    ["predicted_loss", "predicted loss"],
    ["weighted_error", "error of the outputs"],
    ["relative_error", "relative error"],
  ];
  return all.filter(([name]) => found.every(({ totals }) => totals[name] != null));
}

function header(found) {
  return found.map(({ letter, job }) => el("a", { href: jobLink(job.id), title: job.id }, letter));
}

function totalsTable(found) {
  const row = (name, of) => ({ cells: [name, ...found.map(({ totals }) => of(totals))] });
  const rows = [
    { cells: ["spec", ...found.map(({ spec }) => short(spec))] },
    row("parameters", (t) => whole(t.parameters_after)),
    row("parameters saved", (t) => percent(t.parameter_savings)),
    row("bytes", (t) => bytes(t.bytes_after)),
    row("relative error", (t) => errorText(t.relative_error)),
    row("error of the outputs", (t) => errorText(t.weighted_error)),
    row("predicted loss", (t) => errorText(t.predicted_loss)),
    row("layers replaced", (t) => whole(t.layers_factored)),
  ];
  return table(
    "Totals",
    ["", ...header(found)],
    rows.filter((each) => each.cells.slice(1).some((cell) => cell !== "–")),
  );
}

function drawScatter(element, found, size, quality) {
  const largest = Math.max(...found.map(({ totals }) => totals[size]));
  const [scale, unit] = UNITS.find(([least]) => largest >= least) ?? UNITS.at(-1);
  const points = found.map(({ letter, spec, totals, job }) => ({
    x: totals[size] / scale,
    y: totals[quality],
    text:
      `${letter}: ${short(spec)}: ` +
      `${size === "bytes_after" ? bytes(totals[size]) : whole(totals[size])}, ${errorText(totals[quality])}`,
    key: job.id,
  }));
  const options = {
    title: "Quality against size of the compared jobs",
    points,
    frontier: frontier(points),
    marks: [],
    xLabel: size === "bytes_after" ? `bytes, ${unit}B` : `parameters${unit ? `, ${unit}` : ""}`,
    yLabel: quality.replaceAll("_", " "),
    zero: true,
    height: 240,
    onSelect: (id) => {
      location.hash = jobLink(id);
    },
  };
  scatter(element, options);
}

/** The points that no other beats in both, by size. */
function frontier(points) {
  const best = points.filter(
    (one) =>
      !points.some(
        (other) => other !== one && other.x <= one.x && other.y <= one.y && (other.x < one.x || other.y < one.y),
      ),
  );
  return best.sort((a, b) => a.x - b.x).map(({ x, y }) => [x, y]);
}

function specTable(found) {
  const specs = found.map(({ spec }) => spec);
  const different = new Set(differences(specs));
  const flats = specs.map((spec) => flat(spec));
  const paths = [...new Set(flats.flatMap((each) => Object.keys(each)))];
  paths.sort((a, b) => different.has(b) - different.has(a));
  const mark = (path) => (different.has(path) ? [path, el("span", { class: "small" }, " differs")] : path);
  const rows = paths.map((path) => ({
    class: different.has(path) ? "differs" : null,
    cells: [
      el("span", { class: "mono" }, mark(path)),
      ...flats.map((each) => el("span", { class: "mono" }, each[path] ?? "–")),
    ],
  }));
  return table("Specs, those fields first that differ", ["field", ...header(found)], rows, { prose: true });
}

function layerTable(found, onlyDifferent) {
  const kinds = new Map();
  found.forEach(({ report }, i) => {
    for (const layer of report.layers) {
      const name = pattern(layer.name);
      if (!kinds.has(name))
        kinds.set(
          name,
          found.map(() => []),
        );
      kinds.get(name)[i].push(layer);
    }
  });
  const rows = [...kinds].map(([name, each]) => ({ name, cells: each.map(told) }));
  const chosen = onlyDifferent ? rows.filter(({ cells }) => new Set(cells).size > 1) : rows;
  const shown = chosen.slice(0, MOST_ROWS).map(({ name, cells }) => ({
    class: new Set(cells).size > 1 ? "differs" : null,
    cells: [el("span", { class: "mono" }, name), ...cells],
  }));
  const note =
    chosen.length > shown.length &&
    el("p", { class: "small muted" }, `and ${whole(chosen.length - shown.length)} more kinds of layers`);
  return [
    table("Layers: form and rank, parameters kept, error", ["layers", ...header(found)], shown, { prose: true }),
    note,
  ];
}

function told(layers) {
  if (layers.length === 0) return "–";
  const kept =
    sum(layers.map((layer) => layer.parameters_after)) /
    Math.max(1, sum(layers.map((layer) => layer.parameters_before)));
  const forms = [...new Set(layers.map((layer) => (layer.outcome === "kept" ? "dense" : layer.method)))].join(", ");
  const ranks = span(layers.map((layer) => layer.rank));
  const error = span(
    layers.map((layer) => layer.relative_error),
    errorText,
  );
  return [forms, ranks === "–" ? "" : `rank ${ranks}`, percent(kept, 0), error === "–" ? "" : `error ${error}`]
    .filter(Boolean)
    .join(" · ");
}
