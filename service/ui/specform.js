// The form beside a spec: it writes the JSON, and an edited JSON writes it.

import { el, fill } from "./dom.js";
import { bytes } from "./format.js";
import {
  DTYPES,
  LAYOUTS,
  METHODS,
  METHOD_LABELS,
  OBJECTIVES,
  RULES,
  SELECTORS,
  SEVERAL,
  methodsOf,
  ruleOf,
  withField,
  withMethods,
  withRule,
} from "./spec.js";

const lines = (text) =>
  text
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);

/**
 * A form for a spec.
 *
 * `about` has `bytes` of the weight files, and `others`: ids of checkpoints that a spec may name.
 * `onChange(spec)` is called for each change that makes a spec.
 */
export class SpecForm {
  #spec;
  #about;
  #onChange;
  #controls = {};

  constructor(spec, about, onChange) {
    this.#spec = spec;
    this.#about = about;
    this.#onChange = onChange;
    this.element = el("form", { class: "stack", onsubmit: (event) => event.preventDefault() }, this.#parts());
    this.#read();
  }

  get spec() {
    return this.#spec;
  }

  /** Take another spec, as if it had been typed. */
  take(spec) {
    this.#change(() => spec);
  }

  #parts() {
    const c = this.#controls;
    const change = (make) => () => this.#change(make);
    const select = (names, make, tell = (name) => name) =>
      el(
        "select",
        { onchange: change(make) },
        names.map((name) => el("option", { value: name }, tell(name))),
      );
    c.rule = select(
      Object.keys(RULES),
      () => this.#withRule(c.rule.value, this.#firstValue(c.rule.value)),
      (name) => RULES[name].label,
    );
    c.size = el("input", {
      type: "range",
      id: "size",
      oninput: change(() => this.#withRule(c.rule.value, this.#sliderValue())),
    });
    c.told = el("output", { class: "big", for: "size" });
    c.auto = select(["hard_threshold", "vbmf"], () => withRule(this.#spec, "auto", c.auto.value));
    c.method = select(
      [...METHODS, "several"],
      () => withMethods(this.#spec, c.method.value === "several" ? SEVERAL : [c.method.value], this.#about.bytes),
      (name) => METHOD_LABELS[name] ?? name,
    );
    c.methods = METHODS.filter((name) => name !== "cx" && name !== "cur").map((name) =>
      el("input", { type: "checkbox", value: name, onchange: change(() => this.#withMethods(name)) }),
    );
    c.selector = select(SELECTORS, () => withField(this.#spec, "selector", c.selector.value));
    c.layout = select(LAYOUTS, () => withField(this.#spec, "layout", c.layout.value));
    c.dtype = select(DTYPES, () => withField(this.#spec, "dtype", c.dtype.value));
    c.objective = select(
      OBJECTIVES,
      () => withField(this.#spec, "objective", c.objective.value),
      (name) => name || "as it fits",
    );
    const patterns = (field) =>
      el("textarea", {
        rows: "2",
        spellcheck: "false",
        onchange: change(() => withField(this.#spec, field, lines(c[field].value))),
      });
    for (const field of ["include", "exclude"]) c[field] = patterns(field);
    const others = ["", ...this.#about.others];
    for (const field of ["calibration", "base"])
      c[field] = select(
        others,
        () => withField(this.#spec, field, c[field].value),
        (id) => id || "none",
      );
    c.align = el("input", {
      type: "number",
      min: "1",
      onchange: change(() => withField(this.#spec, "align", c.align.valueAsNumber > 1 ? c.align.valueAsNumber : null)),
    });
    c.overrides = el("div", { class: "stack" });
    c.json = el("textarea", { id: "spec", rows: "9", spellcheck: "false", oninput: () => this.#parse() });
    c.fault = el("p", { class: "small", role: "alert" });
    return [this.#sizeParts(), this.#ruleParts(), el("label", {}, "The spec as JSON", c.json), c.fault];
  }

  #sizeParts() {
    const c = this.#controls;
    c.sizeLabel = el("label", {}, el("span", {}, "What to keep"), c.told, c.size);
    c.autoLabel = el("label", {}, "Rule", c.auto);
    return [el("label", {}, "What the slider sets", c.rule), c.sizeLabel, c.autoLabel];
  }

  #ruleParts() {
    const c = this.#controls;
    c.severalLabel = el(
      "fieldset",
      {},
      el("legend", {}, "Forms to choose from"),
      el(
        "div",
        { class: "chips" },
        c.methods.map((box) => el("label", { class: "check" }, box, box.value)),
      ),
    );
    c.selectorLabel = el("label", {}, "Columns and rows are chosen by", c.selector);
    return [
      el("label", {}, "Method", c.method),
      c.severalLabel,
      c.selectorLabel,
      el(
        "details",
        {},
        el("summary", {}, "Rules and layout"),
        el(
          "div",
          { class: "stack" },
          el("label", {}, "Only modules that fit (a pattern on each line)", c.include),
          el("label", {}, "But not those (in place of embeddings, norms and routers)", c.exclude),
          el("div", {}, el("p", { class: "small muted" }, "Rules for some layers"), c.overrides),
          el("label", {}, "Layout of the result", c.layout),
          el("label", {}, "Stored as", c.dtype),
          el("label", {}, "A budget minimizes", c.objective),
          el("label", {}, "Ranks are multiples of", c.align),
          el("label", {}, "Calibration (a stored checkpoint)", c.calibration),
          el("label", {}, "Base of a difference (a stored checkpoint)", c.base),
        ),
      ),
    ];
  }

  #change(make) {
    this.#spec = make();
    this.#read();
    this.#write();
    this.#onChange(this.#spec);
  }

  #withRule(name, value) {
    return withRule(this.#spec, name, value);
  }

  #withMethods(name) {
    const given = this.#controls.methods.filter((box) => box.checked).map((box) => box.value);
    return withMethods(this.#spec, given.length ? given : [name], this.#about.bytes);
  }

  #firstValue(rule) {
    const first = RULES[rule].first;
    return rule === "budget_bytes" ? Math.round(first * this.#about.bytes) : first;
  }

  #sliderValue() {
    const { rule, size } = this.#controls;
    const value = size.valueAsNumber;
    return rule.value === "budget_bytes" ? Math.round(value * this.#about.bytes) : Number(value.toFixed(3));
  }

  /** Show what the spec says; what the form has no control for stays in the JSON alone. */
  #read() {
    const c = this.#controls;
    const spec = this.#spec;
    const methods = methodsOf(spec);
    c.method.value = methods.length > 1 ? "several" : methods[0];
    c.severalLabel.hidden = methods.length === 1;
    for (const box of c.methods) box.checked = methods.includes(box.value);
    this.#readRule(ruleOf(spec));
    c.selectorLabel.hidden = !methods.some((method) => method === "cx" || method === "cur");
    c.selector.value = spec.selector ?? "qdeim";
    c.layout.value = spec.layout ?? "factored";
    c.dtype.value = spec.dtype ?? "keep";
    c.objective.value = spec.objective ?? "";
    c.include.value = (spec.include ?? []).join("\n");
    c.exclude.value = (spec.exclude ?? []).join("\n");
    for (const field of ["calibration", "base"]) c[field].value = spec[field] ?? "";
    c.align.value = spec.align ?? 1;
    this.#readOverrides();
  }

  #readRule(rule) {
    const c = this.#controls;
    c.sizeLabel.hidden = rule === null || rule[0] === "auto";
    c.autoLabel.hidden = rule?.[0] !== "auto";
    c.rule.disabled = rule === null;
    if (rule === null) return;
    const [name, value] = rule;
    c.rule.value = name;
    if (name === "auto") {
      c.auto.value = value;
      return;
    }
    const { least, most, step, tell } = RULES[name];
    const shown = name === "budget_bytes" ? value / this.#about.bytes : value;
    Object.assign(c.size, { min: least, max: most, step });
    c.size.value = shown;
    const exact = name === "budget_bytes" ? ` · ${bytes(value)}` : "";
    c.told.textContent = tell(name === "budget_bytes" ? Math.round(shown * 1000) / 1000 : value) + exact;
    c.size.setAttribute("aria-valuetext", c.told.textContent);
  }

  #readOverrides() {
    const { overrides } = this.#controls;
    const given = Array.isArray(this.#spec.overrides) ? this.#spec.overrides : [];
    // A row in which someone is typing stays.
    if (overrides.contains(document.activeElement) && overrides.childElementCount === given.length + 1) return;
    const put = (index, override) => () => {
      const next = given.slice();
      if (override === null) next.splice(index, 1);
      else next[index] = { ...given[index], ...override() };
      this.#change(() => withField(this.#spec, "overrides", next));
    };
    fill(
      overrides,
      given.map((override, i) => {
        const match = el("input", {
          value: override.match ?? "",
          "aria-label": `Pattern of rule ${i + 1}`,
          onchange: put(i, () => ({ match: match.value })),
        });
        const rank = el("input", {
          value: override.rank === undefined ? "" : JSON.stringify(override.rank),
          placeholder: "rank",
          "aria-label": `Rank of rule ${i + 1}`,
          onchange: put(i, () => ({ rank: parsedRank(rank.value) })),
        });
        return el(
          "div",
          { class: "row override" },
          match,
          rank,
          el(
            "button",
            { type: "button", class: "quiet", "aria-label": `Remove rule ${i + 1}`, onclick: put(i, null) },
            "Remove",
          ),
        );
      }),
      el(
        "button",
        { type: "button", class: "quiet", onclick: put(given.length, () => ({ match: "*.attention.*", rank: 64 })) },
        "Add a rule",
      ),
    );
  }

  #write() {
    const { json, fault } = this.#controls;
    json.value = JSON.stringify(this.#spec, null, 2);
    json.removeAttribute("aria-invalid");
    fault.textContent = "";
  }

  /** An edited JSON changes the form where it is a spec; else it says what is wrong, and the form stays. */
  #parse() {
    const { json, fault } = this.#controls;
    try {
      const spec = JSON.parse(json.value);
      if (spec === null || typeof spec !== "object" || Array.isArray(spec))
        throw new SyntaxError("a spec is an object: { … }");
      json.removeAttribute("aria-invalid");
      fault.textContent = "";
      this.#spec = spec;
      this.#read();
      this.#onChange(spec);
    } catch (error) {
      json.setAttribute("aria-invalid", "true");
      fault.textContent = `Not JSON yet: ${error.message}`;
    }
  }
}

/** A rank as someone types it: 64, {"ratio": 0.5}, or 0.5 for that. */
function parsedRank(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "number" && !Number.isInteger(value) ? { ratio: value } : value;
  } catch {
    return text.trim() === "" ? undefined : text;
  }
}

/** What a form must know of a checkpoint, by its document and the ids of all others. */
export function aboutOf(checkpoint, others) {
  const weights = checkpoint.files.filter((file) => /\.safetensors(\.index.*\.json)?$/.test(file.name));
  return {
    bytes: weights.reduce((total, file) => total + file.size_bytes, 0),
    others: others.filter((id) => id !== checkpoint.id),
  };
}
