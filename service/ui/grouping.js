// Many layers in few rows: a map of kinds and blocks of bounded size, and groups of layers that are alike.

import { placeOf } from "./layers.js";

const MOST_ROWS = 48;
const MOST_COLUMNS = 64;
const OUTSIDE = "–";

/** The name of a group of alike layers: numbers become stars. */
export function pattern(name) {
  return name
    .split(".")
    .map((part) => (/^\d+$/.test(part) ? "*" : part))
    .join(".");
}

/**
 * Lay layers out as a grid of kinds and blocks, once for a list of names.
 *
 * Large models share rows and columns: neighbouring blocks are drawn as one, and kinds beyond the first are one row.
 */
export function grid(names) {
  const places = names.map(placeOf);
  const stacks = new Set(places.filter((each) => each.block !== OUTSIDE).map((each) => each.stack));
  const rowOf = (each) => (each.block !== OUTSIDE && stacks.size > 1 ? `${each.stack} ${each.kind}` : each.kind);
  const all = [...new Set(places.map(rowOf))];
  const rows = all.length > MOST_ROWS ? [...all.slice(0, MOST_ROWS - 1), `${all.length - MOST_ROWS + 1} others`] : all;
  const index = new Map(all.map((row, i) => [row, Math.min(i, rows.length - 1)]));
  const blocks = [...new Set(places.map((each) => each.block).filter((block) => block !== OUTSIDE))].sort(
    (a, b) => a - b,
  );
  const outside = places.some((each) => each.block === OUTSIDE);
  const together = Math.ceil(blocks.length / MOST_COLUMNS) || 1;
  const columns = [];
  for (let i = 0; i < blocks.length; i += together) {
    const last = blocks[Math.min(i + together, blocks.length) - 1];
    columns.push(last === blocks[i] ? last : `${blocks[i]}–${last}`);
  }
  const columnOf = new Map(blocks.map((block, i) => [block, Math.floor(i / together)]));
  if (outside) columns.push(OUTSIDE);
  const cellOf = places.map(
    (each) =>
      index.get(rowOf(each)) * columns.length +
      (each.block === OUTSIDE ? columns.length - 1 : columnOf.get(each.block)),
  );
  return { rows, columns, cellOf };
}

/** Sum weights and values over the cells of a grid: what the heat map draws. `values[i]` may be null. */
export function cells({ rows, columns, cellOf }, values, weights, tell) {
  const size = rows.length * columns.length;
  const [sums, shares, counts] = [new Float64Array(size), new Float64Array(size), new Uint32Array(size)];
  cellOf.forEach((cell, i) => {
    counts[cell] += 1;
    if (values[i] === null) return;
    sums[cell] += values[i] * weights[i];
    shares[cell] += weights[i];
  });
  const found = [];
  for (let cell = 0; cell < size; cell += 1) {
    if (counts[cell] === 0) continue;
    const [row, column] = [Math.floor(cell / columns.length), cell % columns.length];
    const value = shares[cell] > 0 ? sums[cell] / shares[cell] : null;
    const where = columns[column] === OUTSIDE ? rows[row] : `${rows[row]}, block ${columns[column]}`;
    const many = counts[cell] > 1 ? ` (${counts[cell]} layers)` : "";
    found.push({ row, column, value, text: `${where}${many}: ${value === null ? "not known" : tell(value)}` });
  }
  return found;
}

/**
 * Group layers that are alike but for their numbers, in the order of the model; `patterns` are those of their names.
 */
export function groups(layers, patterns) {
  const found = new Map();
  layers.forEach((layer, i) => {
    const id = `${patterns[i]} ${layer.shape} ${layer.outcome} ${layer.reason} ${layer.method}`;
    const group = found.get(id);
    if (group) group.layers.push(layer);
    else found.set(id, { name: patterns[i], layers: [layer] });
  });
  return [...found.values()];
}

export function span(values, show = String) {
  const known = values.filter((value) => value != null);
  if (known.length === 0) return "–";
  const [least, most] = known.reduce(
    ([low, high], value) => [Math.min(low, value), Math.max(high, value)],
    [Infinity, -Infinity],
  );
  return show(least) === show(most) ? show(least) : `${show(least)}–${show(most)}`;
}
