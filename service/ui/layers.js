// What follows from the names of layers and their figures: blocks, kinds, errors over several layers.

/**
 * Split a module's name at its first number: `encoder.layer.3.output.dense` is block `3` of the kind `output.dense`.
 * Later
 * numbers, such as those of experts, are one kind: `mlp.experts.*.up_proj`.
 */
export function placeOf(name) {
  const parts = String(name).split(".");
  const at = parts.findIndex((part) => /^\d+$/.test(part));
  if (at < 0) return { stack: "", block: "–", kind: name };
  const stack = parts.slice(0, at).join(".");
  const rest = parts.slice(at + 1).map((part) => (/^\d+$/.test(part) ? "*" : part));
  return { stack: rest.length ? stack : "", block: parts[at], kind: rest.join(".") || stack || "*" };
}

/** Put layers into a grid: a row for each kind, a column for each block, in the order of the checkpoint. */
export function gridOf(layers) {
  const places = layers.map((layer) => placeOf(layer.name));
  const stacks = new Set(places.filter((place) => place.block !== "–").map((place) => place.stack));
  const columns = new Map();
  const rows = new Map();
  const cells = new Map();
  places.forEach((place, index) => {
    const column = place.block !== "–" && stacks.size > 1 ? `${place.stack} ${place.block}`.trim() : place.block;
    if (!columns.has(column)) columns.set(column, { place, position: columns.size });
    if (!rows.has(place.kind)) rows.set(place.kind, rows.size);
    const key = JSON.stringify([place.kind, column]);
    if (!cells.has(key)) cells.set(key, { kind: place.kind, column, layers: [] });
    cells.get(key).layers.push(index);
  });
  const sorted = sortedColumns(columns);
  const positions = new Map(sorted.map((column, index) => [column, index]));
  const placed = [...cells.values()].map((cell) => ({
    row: rows.get(cell.kind),
    column: positions.get(cell.column),
    layers: cell.layers,
  }));
  return { rows: [...rows.keys()], columns: sorted, cells: placed };
}

/** Sort blocks of one stack by number, since names sorted as text put 10 before 2; what has no block comes last. */
function sortedColumns(columns) {
  const first = new Map();
  for (const { place, position } of columns.values()) {
    if (!first.has(place.stack)) first.set(place.stack, position);
  }
  const order = ([, { place }]) =>
    place.block === "–" ? [Infinity, 0] : [first.get(place.stack), Number(place.block)];
  const compare = (a, b) => {
    const [p, q] = [order(a), order(b)];
    return p[0] === q[0] ? p[1] - q[1] : p[0] - q[0];
  };
  return [...columns.entries()].sort(compare).map(([name]) => name);
}

export const isFactored = (layer) => layer.outcome === "factored";

/** The error that counts: that of the outputs where the layer is calibrated. */
export const errorOf = (layer) => layer.weighted_error ?? layer.relative_error ?? null;

/** The best possible error of the same sort at the layer's rank. */
export const optimumOf = (layer) =>
  (layer.weighted_error == null ? layer.optimal_error : layer.optimal_weighted_error) ?? null;

/** The share of the layer's bytes that is left. */
export const shareOf = (layer) => (layer.bytes_before ? layer.bytes_after / layer.bytes_before : 1);

export const sum = (values) => values.reduce((total, value) => total + value, 0);

/** The root of the mean square of the errors of layers; null where none has an error. */
export function meanError(layers) {
  const errors = layers.map(errorOf).filter((error) => error !== null);
  return errors.length ? Math.sqrt(sum(errors.map((error) => error * error)) / errors.length) : null;
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.floor(sorted.length / 2)] : null;
}

/** Group items by a key, in the order in which the keys come. */
export function grouped(items, keyOf) {
  const groups = new Map();
  for (const item of items) {
    const key = keyOf(item);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(item);
  }
  return groups;
}

export const byKind = (layers) => grouped(layers, (layer) => placeOf(layer.name).kind);
