// The charts of the page and of the report. Names are text, and colours are custom properties of the page's style.
//
// Each function draws into `element`; a second call replaces the drawing. All take `title`, which names the chart
// for screen readers, `onSelect(key)`, which a click or Enter on a value calls with the key of that value, and
// `onRead(key)`,
// which reading a value calls.

import { digits, label, scale, shortened, show, svg } from "./chart-parts.js";

// Beyond so many cells an element for each is slow.
const CANVAS_ABOVE = 3000;
const ROW_PX = 22;
const PLOT_HEIGHT = 280;
const TONES = ["accent", "good", "warn", "bad", "muted"];
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];

/**
 * Draw a grid of values.
 *
 * `rows` and `columns` are labels. `cells` are `{row, column, value, text, key, tone}`: two indices, a value from 0 to
 * 1
 * that gives the strength of the colour (null for an empty cell with a border), and what is read there. `legend` is
 * `{low, high}`:
 * what 0 and 1 mean.
 */
export function heatMap(element, options) {
  show(element, options, paintHeatMap, tabulateCells);
}

/**
 * Draw lines.
 *
 * `series` are `{name, points, tone, dots}`, where points are `[x, y]` or `[x, y, text, key]`, and `dots` draws points
 * without a
 * line. `marks` are `{x, label}`: vertical lines. `log` makes the y axis logarithmic, and `logX` the x axis; `zero`
 * makes
 * the y axis begin at 0.
 */
export function lineChart(element, options) {
  show(element, options, paintLines, tabulatePoints);
}

/** Draw points `{x, y, text, key, tone}`, and a line through `frontier`, which holds `[x, y]`. */
export function scatter(element, { points, frontier = [], ...options }) {
  const tones = [...new Set(points.map((point) => point.tone ?? "accent"))];
  const clouds = tones.map((tone) => ({
    name: "",
    tone,
    dots: true,
    points: points
      .filter((point) => (point.tone ?? "accent") === tone)
      .map((point) => [point.x, point.y, point.text, point.key]),
  }));
  const line = { name: "", tone: "muted", points: frontier, silent: true };
  lineChart(element, { ...options, series: frontier.length ? [line, ...clouds] : clouds });
}

function paintHeatMap({ rows, columns, cells, legend }, width) {
  const most = Math.floor((width * 0.38) / 6.6);
  const longest = Math.min(most, Math.max(1, ...rows.map((row) => row.length)));
  const left = Math.ceil(longest * 6.6) + 10;
  const top = 22;
  const cellWidth = (width - left - 4) / Math.max(1, columns.length);
  const cellHeight = rows.length > 60 ? Math.max(4, 1320 / rows.length) : ROW_PX;
  const height = top + rows.length * cellHeight + (legend ? 34 : 6);
  const spots = cells.map((cell) => ({
    ...cell,
    x: left + (cell.column + 0.5) * cellWidth,
    y: top + (cell.row + 0.5) * cellHeight,
    width: cellWidth,
    height: cellHeight,
    group: cell.row,
  }));
  spots.sort((a, b) => a.row - b.row || a.column - b.column);
  const skip = Math.ceil(13 / cellHeight);
  const names = rows.map((row, index) =>
    index % skip ? "" : label(shortened(row, longest), left - 6, top + (index + 0.5) * cellHeight + 4, "end"),
  );
  const nodes = [...names.filter(Boolean), ...columnLabels(columns, left, cellWidth)];
  if (legend) nodes.push(...legendNodes(legend, left, height - 22, width));
  if (cells.length > CANVAS_ABOVE) {
    return { nodes, canvas: cellsOnCanvas(spots, width, height), width, height, spots };
  }
  return { nodes: [...nodes, ...spots.map(cellNode)], width, height, spots };
}

function columnLabels(columns, left, cellWidth) {
  const longest = Math.max(1, ...columns.map((column) => String(column).length));
  const skip = Math.max(1, Math.ceil((Math.min(longest, 14) * 6.6 + 6) / cellWidth));
  return columns
    .map((column, index) => [shortened(String(column), 14), index])
    .filter(([, index]) => index % skip === 0)
    .map(([text, index]) => label(text, left + (index + 0.5) * cellWidth, 15));
}

function cellNode(spot) {
  const gap = spot.width > 6 ? 1 : 0;
  const place = { x: spot.x - spot.width / 2 + gap / 2, y: spot.y - spot.height / 2 + gap / 2 };
  const size = { width: spot.width - gap, height: spot.height - gap };
  const { value, tone } = spot;
  const look =
    value === null
      ? { fill: "none", stroke: "--line" }
      : { fill: `--${tone ?? "accent"}`, "fill-opacity": strength(value) };
  return svg("rect", { ...place, ...size, ...look });
}

/** Even the weakest value shows that it is one. */
function strength(value) {
  return (0.08 + 0.92 * Math.max(0, Math.min(1, value))).toFixed(3);
}

function cellsOnCanvas(spots, width, height) {
  const canvas = document.createElement("canvas");
  canvas.className = "chart-canvas";
  canvas.setAttribute("aria-hidden", "true");
  const finer = Math.max(2, window.devicePixelRatio || 1);
  canvas.width = width * finer;
  canvas.height = height * finer;
  const style = getComputedStyle(document.documentElement);
  const colours = Object.fromEntries(TONES.map((tone) => [tone, style.getPropertyValue(`--${tone}`).trim()]));
  const pen = canvas.getContext("2d");
  pen.scale(finer, finer);
  for (const { x, y, width: wide, height: high, value, tone } of spots) {
    if (value === null) continue;
    pen.globalAlpha = Number(strength(value));
    pen.fillStyle = colours[tone ?? "accent"];
    pen.fillRect(x - wide / 2, y - high / 2, wide, high);
  }
  return canvas;
}

function legendNodes({ low, high, tone = "accent" }, left, y, width) {
  const length = (String(low).length + String(high).length) * 6.6 + 11 * 14 + 16;
  const x = Math.max(2, Math.min(left, width - length));
  const nodes = [label(low, x, y + 12, "start")];
  const from = x + String(low).length * 6.6 + 8;
  for (let step = 0; step <= 10; step += 1) {
    const look = { fill: `--${tone}`, "fill-opacity": strength(step / 10) };
    nodes.push(svg("rect", { x: from + step * 14, y: y + 2, width: 14, height: 12, ...look }));
  }
  return [...nodes, label(high, from + 11 * 14 + 8, y + 12, "start")];
}

function tabulateCells({ rows, columns, cells }) {
  const sorted = [...cells].sort((a, b) => a.row - b.row || a.column - b.column);
  return {
    head: ["row", "column", "value"],
    rows: sorted.map((cell) => [rows[cell.row], columns[cell.column], cell.text]),
  };
}

function paintLines({ series, xLabel, yLabel, log, logX, zero, marks = [], height = PLOT_HEIGHT }, width) {
  const named = series.filter((line) => line.name);
  const [left, right, top, bottom] = [58, 14, named.length > 1 || marks.length ? 30 : 12, 44];
  const all = series.flatMap((line) => line.points);
  const xs = [...all.map((point) => point[0]), ...marks.map((mark) => mark.x)];
  const x = scale(xs, left, width - right, { log: logX });
  const y = scale(
    all.map((point) => point[1]),
    height - bottom,
    top,
    { log, zero },
  );
  const seen = (point) =>
    point[1] !== null && Number.isFinite(point[1]) && (!log || point[1] > 0) && (!logX || point[0] > 0);
  const nodes = axes({ x, y, width, height, left, right, top, bottom, xLabel, yLabel });
  const spots = [];
  series.forEach((line, index) => {
    const tone = `--${line.tone ?? TONES[index % TONES.length]}`;
    const places = line.points.filter(seen).map((point) => [x.place(point[0]), y.place(point[1]), point]);
    nodes.push(...(line.dots ? dots(places, tone) : [stroke(places, tone, line.tone ? 0 : index)]));
    if (line.silent) return;
    for (const [px, py, [vx, vy, text, key]] of places) {
      const told =
        text ?? `${line.name ? `${line.name}: ` : ""}${xLabel ?? "x"} ${digits(vx)}, ${yLabel ?? "y"} ${digits(vy)}`;
      spots.push({ x: px, y: py, text: told, group: index, key });
    }
  });
  nodes.push(...markNodes(marks, x, top, height - bottom, width), ...namesOf(series, left));
  return { nodes, width, height, spots };
}

function axes({ x, y, width, height, left, right, top, bottom, xLabel, yLabel }) {
  const nodes = [];
  for (const tick of y.ticks) {
    const at = y.place(tick);
    nodes.push(svg("line", { x1: left, x2: width - right, y1: at, y2: at, stroke: "--line" }));
    nodes.push(label(digits(tick), left - 6, at + 4, "end"));
  }
  for (const tick of x.ticks) nodes.push(label(digits(tick), x.place(tick), height - bottom + 16));
  const base = height - bottom;
  nodes.push(svg("line", { x1: left, x2: width - right, y1: base, y2: base, stroke: "--muted" }));
  if (xLabel) nodes.push(label(xLabel, (left + width - right) / 2, height - 8));
  if (yLabel) {
    const middle = (top + base) / 2;
    nodes.push(label(yLabel, 12, middle, "middle", { transform: `rotate(-90 12 ${middle})` }));
  }
  return nodes;
}

function stroke(places, tone, index) {
  const path = places.map(([px, py], at) => `${at ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
  const look = { stroke: tone, "stroke-width": 1.8, "stroke-dasharray": DASHES[index % DASHES.length] };
  return svg("path", { d: path || "M0 0", fill: "none", "stroke-linejoin": "round", ...look });
}

function dots(places, tone) {
  const radius = places.length > 400 ? 2 : 3.5;
  const circle = ([px, py]) =>
    svg("circle", { cx: px.toFixed(1), cy: py.toFixed(1), r: radius, fill: tone, "fill-opacity": 0.8 });
  return places.map(circle);
}

function markNodes(marks, x, top, base, width) {
  return marks.flatMap((mark) => {
    const at = x.place(mark.x);
    const line = svg("line", { x1: at, x2: at, y1: top, y2: base, stroke: "--warn", "stroke-dasharray": "4 3" });
    const anchor = at > width * 0.7 ? "end" : "start";
    return [line, label(mark.label ?? "", at + (anchor === "end" ? -4 : 4), top + 12, anchor, { fill: "--fg" })];
  });
}

function namesOf(series, left) {
  const named = series.map((line, index) => ({ ...line, index })).filter((line) => line.name);
  if (named.length < 2) return [];
  let at = left;
  return named.flatMap((line) => {
    const tone = `--${line.tone ?? TONES[line.index % TONES.length]}`;
    const from = at;
    at += line.name.length * 6.6 + 40;
    return [svg("rect", { x: from, y: 8, width: 14, height: 4, fill: tone }), label(line.name, from + 19, 14, "start")];
  });
}

function tabulatePoints({ series, xLabel, yLabel }) {
  const heads = ["series", xLabel ?? "x", yLabel ?? "y", "what"];
  const shown = series.filter((line) => !line.silent);
  const columns = [
    shown.some((line) => line.name),
    true,
    true,
    shown.some((line) => line.points.some((point) => point[2])),
  ];
  const kept = (row) => row.filter((_, index) => columns[index]);
  const rows = shown.flatMap((line) =>
    line.points.map(([x, y, text]) => kept([line.name, digits(x), digits(y), text ?? ""])),
  );
  return { head: kept(heads), rows };
}
