// A spec as the form shows it: its method, its rule of ranks, and how two specs differ.

export const FIRST_SPEC = { method: "svd", rank: { ratio: 0.5 } };

export const METHODS = ["svd", "pivot", "cx", "cur", "int8", "int4", "int3", "int8+svd", "int4+svd", "int3+svd"];
export const METHOD_LABELS = {
  svd: "svd: two factors, the least error",
  pivot: "pivot: svd in fewer numbers",
  cx: "cx: columns of the weight",
  cur: "cur: columns and rows of the weight",
  int8: "int8: rounded, a quarter of the bytes",
  int4: "int4: rounded, an eighth of the bytes",
  int3: "int3: rounded further",
  "int8+svd": "int8+svd: rounded, and corrected",
  "int4+svd": "int4+svd: rounded, and corrected",
  "int3+svd": "int3+svd: rounded, and corrected",
  several: "the best of several for each layer",
};
export const SELECTORS = ["qdeim", "deim", "cpqr", "osinsky", "leverage", "linear_time"];
export const LAYOUTS = ["factored", "dense", "adapter"];
export const DTYPES = ["keep", "float32", "float16", "bfloat16", "int8"];
export const OBJECTIVES = ["", "relative", "absolute", "loss"];
// What the service fills in, and no one needs to read.
const DEFAULTS = {
  exclude: document.body.dataset.exclude?.split(" "),
  include: ["*"],
  layout: "factored",
  dtype: "keep",
  seed: 0,
  selector: "qdeim",
  cur: { storage: "three" },
  overrides: [],
  bias: "correct",
};

const share = (value) => `${Math.round(value * 1000) / 10} %`;

/** The rules of ranks: what the slider then sets, from `least` to `most`, and how that is read. */
export const RULES = {
  ratio: {
    label: "Size: the same share of each layer",
    least: 0.02,
    most: 1,
    step: 0.01,
    first: 0.5,
    tell: (value) => `${share(value)} of each layer`,
  },
  budget: {
    label: "Size: a share of all layers, spent where it matters",
    least: 0.02,
    most: 1,
    step: 0.01,
    first: 0.5,
    tell: (value) => `${share(value)} of all layers together`,
  },
  budget_bytes: {
    label: "Size: bytes of the files, spent where it matters",
    least: 0.05,
    most: 1,
    step: 0.01,
    first: 0.5,
    tell: (value) => `${share(value)} of the bytes`,
  },
  rank: {
    label: "Rank: one number for all",
    least: 1,
    most: 512,
    step: 1,
    first: 64,
    tell: (value) => `rank ${value}`,
  },
  energy: {
    label: "Quality: energy kept",
    least: 0.5,
    most: 0.999,
    step: 0.001,
    first: 0.9,
    tell: (value) => `${share(value)} of the energy`,
  },
  error: {
    label: "Quality: error at most",
    least: 0.01,
    most: 0.99,
    step: 0.01,
    first: 0.3,
    tell: (value) => `relative error at most ${value}`,
  },
  auto: { label: "Automatic: what stands out of noise", first: "hard_threshold" },
};

// Of several methods a budget takes the best for each layer.
export const SEVERAL = ["svd", "pivot", "int8", "int4+svd"];

export const methodsOf = (spec) => (Array.isArray(spec.method) ? spec.method : [spec.method ?? "svd"]);
export const isRounded = (method) => method.startsWith("int");
const onlyRounded = (methods) => methods.every((method) => /^int\d$/.test(method));

/** The rule of a spec as `[name, value]`; null where there is none, or none that is known. */
export function ruleOf(spec) {
  if (typeof spec.rank === "number") return ["rank", spec.rank];
  const [name] = Object.keys(spec.rank ?? {});
  return name in RULES && name !== "rank" ? [name, spec.rank[name]] : null;
}

export function withRule(spec, name, value) {
  return { ...spec, rank: name === "rank" ? value : { [name]: value } };
}

/** Take these methods, and a rule that can go with them; `bytes` is the size of the weight files. */
export function withMethods(spec, methods, bytes) {
  if (methods.length === 0) return spec;
  const next = { ...spec, method: methods.length === 1 ? methods[0] : methods };
  const [rule] = ruleOf(spec) ?? [null];
  const half = Math.round(bytes / 2);
  if (methods.length === 1 && onlyRounded(methods)) {
    const { rank: _, ...rest } = next;
    return rest;
  }
  if (methods.some(isRounded) && (methods.length > 1 || rule === "budget"))
    return rule === "budget_bytes" ? next : withRule(next, "budget_bytes", half);
  if (methods.length > 1 && rule !== "budget" && rule !== "budget_bytes") return withRule(next, "budget", 0.5);
  return rule === null ? withRule(next, "ratio", 0.5) : next;
}

/** Set a field, or leave it out where it says nothing. */
export function withField(spec, name, value) {
  const { [name]: _, ...rest } = spec;
  const empty =
    value === "" ||
    value == null ||
    (Array.isArray(value) && value.length === 0) ||
    JSON.stringify(value) === JSON.stringify(DEFAULTS[name]);
  return empty ? rest : { ...rest, [name]: value };
}

/** Leave out what the service has filled in. */
export function withoutDefaults(spec) {
  let short = spec;
  for (const [name, value] of Object.entries(spec)) short = withField(short, name, value);
  const order = ["method", "rank"];
  return Object.fromEntries(
    Object.entries(short).sort(([a], [b]) => (order.indexOf(a) + 1 || 9) - (order.indexOf(b) + 1 || 9)),
  );
}

/** The values of a spec by their paths, such as `rank.ratio`. */
export function flat(value, path = "") {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return { [path]: JSON.stringify(value) };
  return Object.assign({}, ...Object.entries(value).map(([name, each]) => flat(each, path ? `${path}.${name}` : name)));
}

/** The paths in which specs differ. */
export function differences(specs) {
  const all = specs.map((spec) => flat(spec));
  const paths = [...new Set(all.flatMap((each) => Object.keys(each)))];
  return paths.filter((path) => new Set(all.map((each) => each[path])).size > 1).sort();
}

/** A spec in a few words. */
export function short(spec) {
  const rule = ruleOf(spec);
  const words = [methodsOf(spec).join(", ")];
  if (rule !== null) words.push(rule[0] === "rank" ? `rank ${rule[1]}` : `${rule[0].replace("_", " ")} ${rule[1]}`);
  if (spec.layout && spec.layout !== "factored") words.push(spec.layout);
  if (spec.dtype && spec.dtype !== "keep") words.push(spec.dtype);
  if (spec.calibration) words.push("calibrated");
  if (spec.pairs) words.push("pairs");
  if (spec.overrides?.length) words.push(`${spec.overrides.length} overrides`);
  return words.join(" · ");
}

/** The spec that was typed last for a checkpoint: it comes back after a reload, and on the way back from a job. */
export const lastSpec = {
  get(checkpoint) {
    try {
      return JSON.parse(sessionStorage.getItem(`eckart.spec.${checkpoint}`)) ?? FIRST_SPEC;
    } catch {
      return FIRST_SPEC;
    }
  },
  put: (checkpoint, spec) => sessionStorage.setItem(`eckart.spec.${checkpoint}`, JSON.stringify(spec)),
};
