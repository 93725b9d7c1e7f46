// What a spec would do: totals, the curve of error against size, the map of layers, and what is left alone.

import { heatMap, lineChart } from "./charts.js";
import { el, fill, notice, table } from "./dom.js";
import { bytes, count, error as errorText, percent, plural, whole } from "./format.js";
import { cells, grid, groups, pattern, span } from "./grouping.js";
import { sum } from "./layers.js";
import { curves } from "./curves.js";
import { costFigure, curveNote, jobsOnCurve, MEANING, withoutNote } from "./plancost.js";
import { lostShares, planCost, tellLoss } from "./spectra.js";

const MOST_GROUPS = 60;
const UNITS = [
  [1e9, "billions"],
  [1e6, "millions"],
  [1e3, "thousands"],
  [1, "number"],
];

/** The live part of a checkpoint's view; `show` is called for each plan that comes. */
export class PlanView {
  #parts;
  #layout = { names: null };
  #known = { spectra: new Map(), jobs: [], from: null, calibrated: false };
  #last = null;
  #shownAll = false;

  constructor() {
    const part = () => el("div");
    this.#parts = {
      totals: part(),
      fault: part(),
      curveHead: el("h2", {}, "Error against size"),
      curve: part(),
      curveNote: el("p", { class: "small muted" }),
      map: part(),
      layers: part(),
      left: part(),
      warnings: part(),
    };
    const p = this.#parts;
    p.errorOption = el("option", { value: "error" }, "error");
    this.mapped = el(
      "select",
      { "aria-label": "What the map shows", onchange: () => this.#drawMap() },
      el("option", { value: "share" }, "parameters kept"),
      el("option", { value: "bytes" }, "bytes kept"),
      p.errorOption,
    );
    this.element = el(
      "div",
      { class: "stack", "aria-busy": "true" },
      el("section", { class: "panel stack", "aria-label": "What it costs" }, p.totals, p.fault, p.warnings),
      el("section", { class: "panel" }, p.curveHead, p.curve, p.curveNote),
      el(
        "section",
        { class: "panel" },
        el("div", { class: "head" }, el("h2", {}, "Layers"), el("label", { class: "check" }, this.mapped)),
        p.map,
        p.layers,
      ),
      p.left,
    );
  }

  /** Say what earlier jobs tell: spectra by the names of layers, and jobs for the curve. */
  know(known) {
    if (known === this.#known) return;
    if (known.spectra.size > 0 && this.#known.spectra.size === 0) this.mapped.value = "error";
    this.#known = known;
    this.#layout.names = null;
    const isLoss = tellLoss(known.spectra);
    this.#parts.curveHead.textContent = `${isLoss ? "Predicted loss" : "Error"} against size`;
    this.#parts.errorOption.textContent = isLoss ? "predicted loss" : "error";
  }

  busy(is) {
    this.element.setAttribute("aria-busy", String(is));
  }

  fail(error) {
    fill(this.#parts.fault, notice(error));
  }

  show(plan, spec) {
    performance.mark("plan-shown-begin");
    this.#last = plan;
    fill(this.#parts.fault);
    this.#lay(plan, spec);
    this.#drawTotals(plan);
    this.#drawCurve(plan);
    this.#drawMap();
    this.#drawLayers(plan);
    this.#drawLeft(plan);
    performance.measure("plan-shown", "plan-shown-begin");
  }

  /** What depends on the names and forms of layers alone is made once: with many layers it takes the longest. */
  #lay({ layers, totals }, spec) {
    const storage = spec.cur?.storage;
    const { names, methods } = this.#layout;
    const same = names?.length === layers.length && storage === this.#layout.storage;
    if (same && layers.every((layer, i) => layer.name === names[i] && layer.method === methods[i])) return;
    const own = layers.map((layer) => layer.name);
    const patterns = own.map(pattern);
    // An adapter holds factors alone.
    const others = totals.parameters_before - sum(layers.map((layer) => layer.parameters_before));
    this.#layout = {
      names: own,
      methods: layers.map((layer) => layer.method),
      storage,
      patterns,
      kinds: new Set(patterns).size,
      grid: grid(own),
      curve: curves(layers, spec.layout === "adapter" ? 0 : others, this.#known.spectra, storage),
    };
  }

  #drawTotals(plan) {
    const t = plan.totals;
    const cost = planCost(plan, this.#known.spectra);
    const bound = t.exact ? "" : "at most ";
    const figure = (name, value, more) => [el("dt", {}, name), el("dd", {}, value, el("small", {}, more))];
    const group = (...each) => el("div", {}, figure(...each));
    fill(
      this.#parts.totals,
      el(
        "dl",
        { class: "figures" },
        group(
          "Parameters",
          `${bound}${count(t.parameters_after)}`,
          `of ${count(t.parameters_before)}: ${percent(t.parameter_savings)} saved`,
        ),
        group(
          "Bytes",
          `${bound}${bytes(t.bytes_after)}`,
          `of ${bytes(t.bytes_before)}: ${percent(1 - t.bytes_after / Math.max(t.bytes_before, 1))} saved`,
        ),
        group("Layers", `${whole(t.layers_factored)} replaced`, `${whole(t.layers_kept)} stay dense`),
        group(tellLoss(this.#known.spectra) ? "Predicted loss" : "Error", ...costFigure(cost, plan)),
      ),
    );
    fill(
      this.#parts.warnings,
      plan.warnings.length > 0 &&
        el(
          "details",
          { open: this.#parts.warnings.firstElementChild?.open },
          el("summary", {}, plural(plan.warnings.length, "warning")),
          el(
            "ul",
            { class: "small" },
            plan.warnings.map((text) => el("li", {}, text)),
          ),
        ),
    );
  }

  #drawCurve(plan) {
    const { lines, without } = this.#layout.curve;
    const { jobs, from, calibrated, spectra } = this.#known;
    const isLoss = tellLoss(spectra);
    fill(
      this.#parts.curveNote,
      MEANING,
      curveNote(from, lines.length > 0, isLoss),
      withoutNote(without, plan.layers.length),
    );
    const done = jobsOnCurve(jobs, isLoss);
    if (lines.length + done.length === 0) {
      fill(this.#parts.curve, plan.layers.length === 0 && el("p", { class: "muted" }, "No layer is selected."));
      return;
    }
    const [unit, unitName] = UNITS.find(([least]) => plan.totals.parameters_before >= least) ?? UNITS.at(-1);
    const told = isLoss ? "predicted loss" : "error";
    const text = (line, x, y) => `${line.name}: ${told} ${errorText(y)} at ${count(x)} parameters`;
    const series = lines.map((line) => ({
      ...line,
      points: line.points.map(([x, y]) => [x / unit, y, text(line, x, y)]),
    }));
    const dots = done.map(([x, y, ...rest]) => [x / unit, y, ...rest]);
    if (dots.length > 0) series.push({ name: "finished jobs", points: dots, dots: true, tone: "fg" });
    lineChart(this.#parts.curve, {
      title: `${isLoss ? "Predicted loss" : "Error"} against the parameters of the whole checkpoint`,
      series,
      marks: [
        { x: plan.totals.parameters_after / unit, label: plan.totals.exact ? "this plan" : "this plan, at most" },
      ],
      xLabel: `parameters of the whole checkpoint, ${unitName}`,
      yLabel: isLoss ? "predicted rise of the loss" : calibrated ? "error of the outputs" : "relative error",
      zero: true,
      height: 260,
      onSelect: (id) => {
        location.hash = `#/jobs/${encodeURIComponent(id)}`;
      },
    });
  }

  #drawMap() {
    const plan = this.#last;
    if (plan === null || plan.layers.length === 0) return fill(this.#parts.map);
    const what = this.mapped.value;
    const { grid: places } = this.#layout;
    const weights = plan.layers.map((layer) => layer.parameters_before);
    const name = this.#parts.errorOption.textContent;
    const tell = what === "error" ? (value) => `${name} ${errorText(value)}` : (value) => `${percent(value, 0)} kept`;
    const shown = cells(
      places,
      plan.layers.map((layer) => this.#valueOf(layer, what)),
      weights,
      tell,
    );
    const legend = what === "error" ? spread(shown) : { low: "0 %", high: "100 % kept" };
    return heatMap(this.#parts.map, {
      title: `Layers by kind and block: ${this.mapped.selectedOptions[0].text}`,
      ...places,
      cells: shown,
      legend,
    });
  }

  #valueOf(layer, what) {
    if (what === "share") return layer.parameters_after / Math.max(layer.parameters_before, 1);
    if (what === "bytes") return layer.bytes_after / Math.max(layer.bytes_before, 1);
    const spectrum = this.#known.spectra.get(layer.name);
    const bounds = lostShares(layer, spectrum);
    if (bounds === null) return null;
    return spectrum?.isLoss ? bounds[1] * spectrum.total : Math.sqrt(bounds[1]);
  }

  #drawLayers(plan) {
    const open = this.#parts.layers.firstElementChild?.open ?? false;
    const details = el(
      "details",
      { open },
      el("summary", {}, `Each kind of layer in figures (${whole(this.#layout.kinds)})`),
    );
    // Rows of a closed table are made when it is opened.
    const put = () => details.open && details.childElementCount === 1 && details.append(...this.#rows(plan));
    details.addEventListener("toggle", put);
    put();
    fill(this.#parts.layers, details);
  }

  #rows(plan) {
    const found = groups(plan.layers, this.#layout.patterns);
    const shown = this.#shownAll ? found : found.slice(0, MOST_GROUPS);
    const rest = found.length - shown.length;
    const all = () => {
      this.#shownAll = true;
      this.#drawLayers(this.#last);
    };
    const rows = table("Layers", ["layers", "number", "shape", "form", "rank", "saved"], shown.map(groupRow));
    return rest > 0
      ? [rows, el("button", { type: "button", class: "quiet", onclick: all }, `Show ${plural(rest, "more row")}`)]
      : [rows];
  }

  #drawLeft(plan) {
    const rows = plan.not_selected.map((rule) => ({
      cells: [
        rule.rule,
        whole(rule.tensors),
        count(rule.parameters),
        percent(rule.share),
        el("span", { class: "small mono" }, rule.names.join(", "), rule.tensors > rule.names.length ? ", …" : ""),
      ],
    }));
    const open = this.#parts.left.firstElementChild?.open ?? false;
    const share = sum(plan.not_selected.map((rule) => rule.share));
    fill(
      this.#parts.left,
      rows.length > 0 &&
        el(
          "details",
          { class: "panel", open },
          el("summary", {}, `Left as it is: ${percent(share)} of the parameters, by ${plural(rows.length, "rule")}`),
          table("What is not selected, and why", ["rule", "tensors", "parameters", "share", "first names"], rows, {
            prose: true,
          }),
        ),
    );
  }
}

/** Errors lie close together: the colours begin at the least and end at the most. Returns what these are. */
function spread(shown) {
  const known = shown.filter((cell) => cell.value !== null);
  const [least, most] = [Math.min(...known.map((cell) => cell.value)), Math.max(...known.map((cell) => cell.value))];
  for (const cell of known) cell.value = most > least ? (cell.value - least) / (most - least) : 1;
  return known.length > 0 ? { low: errorText(least), high: errorText(most) } : null;
}

function groupRow({ name, layers }) {
  const [first] = layers;
  const before = sum(layers.map((layer) => layer.bytes_before));
  const after = sum(layers.map((layer) => layer.bytes_after));
  const ranks = layers.flatMap((layer) =>
    layer.rank_bounds ? [layer.rank_bounds.least, layer.rank_bounds.most] : [layer.rank],
  );
  const form = first.outcome === "kept" ? `dense: ${(first.reason ?? "").replaceAll("_", " ")}` : first.method;
  return {
    cells: [
      el("span", { class: "mono" }, name),
      whole(layers.length),
      first.shape.join(" × "),
      form,
      span(ranks),
      percent(1 - after / Math.max(before, 1)),
    ],
  };
}
