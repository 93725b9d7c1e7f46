// The report of a job as a part of a page: built of elements, so that names from files are only ever text.

import { heatMap, lineChart, scatter } from "./charts.js";
import { digits, html } from "./chart-parts.js";
import { diagnose } from "./diagnosis.js";
import { bytes } from "./format.js";
import { errorOf, grouped, gridOf, isFactored, optimumOf, shareOf, sum } from "./layers.js";
import { REASONS, RULES } from "./reasons.js";
import { curlLines, pythonLines } from "./repeat.js";
import { spectrumOf } from "./spectrum.js";
import { layerTable, table } from "./tables.js";

// An error so much above the best possible one is worth a chart of its own.
const ABOVE_OPTIMUM = 1.01;

/** Show a report, as `GET /v1/jobs/{id}/report` sends it or as the page of one file holds it, in `element`. */
export function renderReport(element, report) {
  const charts = [];
  const sections = [
    totalsSection(report),
    diagnosisSection(report),
    mapsSection(report, charts),
    spectraSection(report, charts),
    errorsSection(report, charts),
    layersSection(report),
    leftOutSection(report),
    filesSection(report),
    repeatSection(report),
  ];
  element.classList.add("report");
  element.replaceChildren(...sections.filter(Boolean));
  // Drawn when they are in the page, since only then is their width known.
  for (const chart of charts) chart();
}

function section(title, ...children) {
  const heading = html("h2", {}, title);
  return html("section", { class: "report-section panel" }, heading, ...children.filter(Boolean));
}

const muted = (text) => html("p", { class: "muted" }, text);
const percent = (share) => `${Number((100 * share).toPrecision(3))} %`;
const count = (value) => Number(value).toLocaleString("en");

function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "–");
  return html(
    "dl",
    { class: "figures" },
    ...known.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value))),
  );
}

function totalsSection(report) {
  const { totals } = report;
  const saved = (before, after) => (before ? percent(1 - after / before) : "0 %");
  const list = facts([
    ["Parameters", `${count(totals.parameters_before)} → ${count(totals.parameters_after)}`],
    ["Parameters saved", saved(totals.parameters_before, totals.parameters_after)],
    ["Tensors' bytes", `${bytes(totals.bytes_before)} → ${bytes(totals.bytes_after)}`],
    ["Bytes saved", saved(totals.bytes_before, totals.bytes_after)],
    ["Relative error", digits(totals.relative_error)],
    ["Error of the outputs", digits(totals.weighted_error)],
    ["Predicted rise of the loss", digits(totals.predicted_loss)],
    ["Error over the optimum", digits(totals.error_over_optimal)],
    ["Layers factored", `${totals.layers_factored} of ${totals.layers_factored + totals.layers_kept}`],
    ["Time", `${digits(totals.seconds)} s`],
  ]);
  const warnings = (report.warnings ?? []).map((text) => html("li", { class: "notice warn" }, text));
  const told = warnings.length ? html("ul", { class: "warnings", "aria-label": "Warnings" }, ...warnings) : null;
  const whose = report.job_id ? `Job ${report.job_id}, ` : "";
  return section("Totals", muted(`${whose}${report.created_at ?? ""}`), list, told);
}

function diagnosisSection(report) {
  const items = diagnose(report).map(({ name, tone, text }) =>
    html("li", { class: `notice ${tone}`, "data-rule": name }, text),
  );
  return section("Diagnosis", html("ul", { class: "diagnosis" }, ...items));
}

function told(layer) {
  if (!isFactored(layer)) return `${layer.name}: kept dense, ${REASONS[layer.reason] ?? layer.reason ?? ""}`;
  const rank = layer.rank ? ` rank ${layer.rank}` : "";
  const best = optimumOf(layer) === null ? "" : ` (best possible ${digits(optimumOf(layer))})`;
  return (
    `${layer.name}: ${layer.method}${rank}, keeps ${percent(shareOf(layer))} of its ` +
    `bytes, error ${digits(errorOf(layer))}${best}`
  );
}

/** Draw two maps of block × kind; choosing or reading a cell shows the spectrum of its layer. */
function mapsSection(report, charts) {
  const { layers } = report;
  if (!layers.length) return null;
  const grid = gridOf(layers);
  const errors = layers.filter(isFactored).map((layer) => errorOf(layer) ?? 0);
  const [best, worst] = errors.reduce(
    ([low, high], error) => [Math.min(low, error), Math.max(high, error)],
    [Infinity, 0],
  );
  const placed = (error) => (worst > best ? (error - best) / (worst - best) : 1);
  const cellsBy = (valueOf) =>
    grid.cells.map(({ row, column, layers: indices }) => {
      const taken = indices.map((index) => layers[index]).filter(isFactored);
      const shown = taken[0] ?? layers[indices[0]];
      const value = taken.length ? sum(taken.map(valueOf)) / taken.length : null;
      const more = indices.length > 1 ? ` (and ${indices.length - 1} more)` : "";
      return { row, column, value, text: told(shown) + more, key: layers.indexOf(shown) };
    });
  const draw = (title, valueOf, legend) => {
    const place = html("div");
    const onSelect = (key) => place.dispatchEvent(new CustomEvent("layer", { bubbles: true, detail: key }));
    const cells = cellsBy(valueOf);
    charts.push(() =>
      heatMap(place, { title, rows: grid.rows, columns: grid.columns, cells, legend, onSelect, onRead: onSelect }),
    );
    return [html("h3", {}, title), place];
  };
  return section(
    "Where it was saved, and what it cost",
    muted("A row for each kind of layer, a column for each block. Outlined: kept dense."),
    ...draw("Share of the bytes kept", shareOf, { low: "0 %", high: "100 %" }),
    ...(errors.length
      ? draw("Error", (layer) => placed(errorOf(layer) ?? 0), { low: digits(best), high: digits(worst) })
      : []),
  );
}

function spectraSection(report, charts) {
  const known = report.layers.map((layer, index) => [layer, index]).filter(([layer]) => spectrumOf(layer).length);
  if (!known.length) return null;
  const place = html("div");
  const title = html("h3");
  const choice = html("select", { id: "report-layer" });
  choice.append(...known.map(([layer, index]) => html("option", { value: String(index) }, layer.name)));
  const [, first] = known.reduce((a, b) => ((errorOf(b[0]) ?? 0) > (errorOf(a[0]) ?? 0) ? b : a));
  const draw = () => {
    const layer = report.layers[Number(choice.value)];
    const marks = layer.rank ? [{ x: layer.rank, label: `rank ${layer.rank}` }] : [];
    const series = [{ name: layer.name, points: spectrumOf(layer) }];
    title.textContent = `Singular values of ${layer.name}`;
    lineChart(place, { title: title.textContent, series, marks, log: true, xLabel: "index", yLabel: "singular value" });
  };
  choice.addEventListener("change", draw);
  const shown = section(
    "Spectra",
    html("p", { class: "on-screen" }, html("label", { for: "report-layer" }, "Layer "), choice),
    html("p", { class: "muted on-screen" }, "Choose a layer here, or read one in a map above or a chart below."),
    title,
    place,
  );
  charts.push(() => {
    choice.value = String(first);
    draw();
    shown.parentElement.addEventListener("layer", ({ detail }) => {
      if (choice.value === String(detail) || !spectrumOf(report.layers[detail]).length) return;
      choice.value = String(detail);
      draw();
    });
  });
  return shown;
}

/** Draw each layer's error beside the best possible one at its rank. */
function errorsSection(report, charts) {
  const layers = report.layers.map((layer, index) => ({ layer, index })).filter(({ layer }) => errorOf(layer) !== null);
  if (!layers.length) return null;
  const what = layers.some(({ layer }) => layer.weighted_error != null) ? "error of the outputs" : "relative error";
  const point = (valueOf) => (entry, at) => [at + 1, valueOf(entry.layer), told(entry.layer), entry.index];
  const best = layers.map(point(optimumOf)).filter(([, value]) => value !== null);
  const series = [{ name: "error", points: layers.map(point(errorOf)), tone: "accent", dots: true }];
  if (best.length) series.push({ name: "best possible at this rank", points: best, tone: "good" });
  const far = layers.filter(({ layer }) => optimumOf(layer) > 0 && errorOf(layer) > ABOVE_OPTIMUM * optimumOf(layer));
  const places = [html("div"), html("div")];
  const onSelect = (key) => places[0].dispatchEvent(new CustomEvent("layer", { bubbles: true, detail: key }));
  const options = { onSelect, onRead: onSelect };
  charts.push(() => {
    lineChart(places[0], { title: "Error by layer", series, xLabel: "layer", yLabel: what, zero: true, ...options });
    if (far.length) againstOptimum(places[1], layers, what, options);
  });
  const summary = far.length
    ? `${far.length} of ${layers.length} layers are more than 1 % above the best possible error.`
    : "No layer with a known optimum is more than 1 % above it.";
  return section("Error against the optimum", muted(summary), places[0], far.length ? places[1] : null);
}

function againstOptimum(place, layers, what, options) {
  const known = layers.filter(({ layer }) => optimumOf(layer) !== null);
  const points = known.map(({ layer, index }) => ({
    x: optimumOf(layer),
    y: errorOf(layer),
    text: told(layer),
    key: index,
  }));
  const values = points.flatMap(({ x }) => x);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const frontier = [
    [low, low],
    [high, high],
  ];
  scatter(place, {
    title: "Error against the best possible error",
    points,
    frontier,
    xLabel: "best possible",
    yLabel: what,
    ...options,
  });
}

function layersSection(report) {
  return report.layers.length ? section("Layers", layerTable(report.layers)) : null;
}

function leftOutSection(report) {
  const kept = report.layers.filter((layer) => !isFactored(layer));
  const rules = report.not_selected ?? [];
  if (!kept.length && !rules.length) return null;
  const children = [];
  if (kept.length) {
    const reasons = [...grouped(kept, (layer) => layer.reason ?? "unknown")];
    const rows = reasons.map(([reason, layers]) => [
      reason,
      REASONS[reason] ?? "",
      layers.length,
      count(sum(layers.map((layer) => layer.parameters_before))),
      layers
        .slice(0, 5)
        .map((layer) => layer.name)
        .join(", "),
    ]);
    children.push(
      html("h3", {}, "Selected, but kept dense"),
      table("Kept dense", ["reason", "meaning", "layers", "parameters", "first names"], rows),
    );
  }
  if (rules.length) {
    const rows = rules.map(({ rule, tensors, parameters, share, names }) => [
      rule,
      RULES[rule] ?? REASONS[rule] ?? "",
      tensors,
      count(parameters),
      percent(share),
      (names ?? []).join(", "),
    ]);
    const head = ["rule", "meaning", "tensors", "parameters", "share", "first names"];
    children.push(html("h3", {}, "Not selected"), table("Not selected", head, rows));
  }
  return section("What was left out, and why", ...children);
}

function filesSection(report) {
  const sides = [
    ["input", report.input?.files],
    ["calibration", report.calibration],
    ["base", report.base],
    ["output", report.output?.files],
  ];
  const rows = sides.flatMap(([side, files]) =>
    (files ?? []).map((file) => [side, file.name, count(file.size_bytes), file.sha256]),
  );
  const load = report.how_to_load ? html("p", {}, report.how_to_load) : null;
  const environment = facts(Object.entries(report.environment ?? {}).map(([name, value]) => [name, String(value)]));
  const files = table("Files", ["side", "name", "bytes", "SHA-256"], rows);
  return section("Files and environment", load, files, html("h3", {}, "Computed with"), environment);
}

function repeatSection(report) {
  const code = (title, text) => [
    html("h3", {}, title),
    html("pre", { tabindex: "0", role: "region", "aria-label": title }, html("code", {}, text)),
  ];
  return section(
    "How to repeat it",
    ...code("With curl", curlLines(report)),
    ...code("With Python", pythonLines(report)),
  );
}
