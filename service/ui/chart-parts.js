// What all charts share: SVG elements, scales, and a frame in which hover and arrow keys read values.

const SVG = "http://www.w3.org/2000/svg";
const HINT = "Hover, or focus the chart and use the arrow keys, to read values.";
const LEAST_WIDTH = 280;
const MOST_WIDTH = 1100;
const UNKNOWN_WIDTH = 720;
// What the browser may do to the width without a new drawing: the old one is scaled.
const SCALED_PX = 24;

const frames = new WeakMap();

/** Make an element of HTML; `attributes` are set as text, and children are nodes or text. */
export function html(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Make an element of SVG. A colour is the name of a custom property, such as `fill: "--accent"`. */
export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "fill" || key === "stroke") made.style.setProperty(key, value === "none" ? value : `var(${value})`);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** Write text at a place; `anchor` is start, middle or end. */
export function label(text, x, y, anchor = "middle", more = {}) {
  return svg("text", { x, y, "text-anchor": anchor, fill: "--muted", "font-size": 12, ...more }, String(text));
}

/** Shorten a long name in its middle, where names of layers differ least. */
export function shortened(text, length) {
  if (text.length <= length) return text;
  const head = Math.ceil((length - 1) / 3);
  return `${text.slice(0, head)}…${text.slice(text.length - (length - 1 - head))}`;
}

/** Write a number with three digits, as people read it. */
export function digits(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1).replace("e+", "e");
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
}

/** Make a scale from values to places, with its ticks; a logarithmic one leaves out what is not positive. */
export function scale(values, from, to, { log = false, zero = false } = {}) {
  const taken = values.filter((value) => Number.isFinite(value) && (!log || value > 0));
  let low = taken.reduce((least, value) => Math.min(least, value), Infinity);
  let high = taken.reduce((most, value) => Math.max(most, value), -Infinity);
  if (!taken.length) [low, high] = log ? [0.1, 1] : [0, 1];
  if (zero) low = Math.min(low, 0);
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - (zero ? 0 : 0.5), high + 0.5];
  const map = log ? Math.log10 : (value) => value;
  const place = (value) => from + ((map(value) - map(low)) / (map(high) - map(low))) * (to - from);
  return { place, ticks: log ? decades(low, high) : steps(low, high, Math.abs(to - from)) };
}

function steps(low, high, length) {
  const rough = (high - low) / Math.max(2, length / 80);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: Math.max(0, count) }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

function decades(low, high) {
  const first = Math.ceil(Math.log10(low) - 1e-9);
  const last = Math.floor(Math.log10(high) + 1e-9);
  if (last - first < 2) return withinDecades(low, high);
  const stride = Math.ceil((last - first) / 6);
  const ticks = [];
  for (let power = first; power <= last; power += stride) ticks.push(10 ** power);
  return ticks;
}

function withinDecades(low, high) {
  const first = Math.floor(Math.log10(low));
  const all = [0, 1, 2].flatMap((power) => [1, 2, 5].map((factor) => factor * 10 ** (first + power)));
  const ticks = all.filter((tick) => tick >= low && tick <= high);
  return ticks.length > 1 ? ticks : [low, high];
}

/**
 * Show a chart in `element`. A second call replaces what it shows, and keeps focus and the open table.
 *
 * `paint(options, width)` gives `{nodes, width, height, spots}`, where a spot is what can be read:
 * `{x, y, text, group, key}` around its middle, with `width` and `height` if it covers a place. `tabulate(options)`
 * gives
 * `{head, rows}`. `options.onSelect(key)` is called by a click, or Enter, on a spot, and `options.onRead(key)`
 * when a spot is read.
 */
export function show(element, options, paint, tabulate) {
  let frame = frames.get(element);
  if (frame?.figure.parentNode !== element) {
    frame = build(element);
    frames.set(element, frame);
  }
  Object.assign(frame, { options, paint, tabulate, current: null });
  draw(frame);
}

function build(element) {
  const plot = html("div", { class: "chart-plot", tabindex: "0", role: "group" });
  const readout = html("p", { class: "chart-readout", "aria-live": "polite" });
  const table = html("details", { class: "chart-table" }, html("summary", {}, "Values as a table"));
  const cursor = html("div", { class: "chart-cursor", "aria-hidden": "true", hidden: "" });
  const figure = html("figure", { class: "chart" }, plot, readout, table);
  element.replaceChildren(figure);
  const frame = { figure, plot, readout, table, cursor, drawnWidth: 0 };
  plot.addEventListener("pointermove", (event) => read(frame, nearest(frame, event)));
  plot.addEventListener("pointerleave", () => read(frame, null));
  plot.addEventListener("blur", () => read(frame, null));
  plot.addEventListener("click", (event) => select(frame, nearest(frame, event)));
  plot.addEventListener("keydown", (event) => onKey(frame, event));
  table.addEventListener("toggle", () => fillTable(frame));
  new ResizeObserver(() => {
    if (Math.abs(widthOf(plot) - frame.drawnWidth) > SCALED_PX) draw(frame);
  }).observe(plot);
  return frame;
}

function widthOf(plot) {
  return Math.max(LEAST_WIDTH, Math.min(MOST_WIDTH, plot.clientWidth || UNKNOWN_WIDTH));
}

function draw(frame) {
  const { plot, options, cursor } = frame;
  frame.drawnWidth = widthOf(plot);
  const { nodes, canvas, width, height, spots } = frame.paint(options, frame.drawnWidth);
  const title = options.title ?? "Chart";
  const image = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title },
    svg("title", {}, title),
    ...nodes,
  );
  plot.setAttribute("aria-label", `${title}: read values with the arrow keys`);
  plot.replaceChildren(...(canvas ? [canvas] : []), image, cursor);
  Object.assign(frame, { spots, width, height });
  read(frame, null);
  fillTable(frame);
}

function fillTable({ table, options, tabulate }) {
  if (!table.open) return;
  const { head, rows } = tabulate(options);
  const cells = (tag, row) => row.map((text) => html(tag, tag === "th" ? { scope: "col" } : {}, String(text)));
  const body = rows.map((row) => html("tr", {}, ...cells("td", row)));
  const made = html("table", {}, html("thead", {}, html("tr", {}, ...cells("th", head))), html("tbody", {}, ...body));
  const label = `${options.title ?? "Chart"}: values`;
  const box = html("div", { class: "scrolled", tabindex: "0", role: "region", "aria-label": label }, made);
  table.replaceChildren(table.firstElementChild, box);
}

function nearest({ plot, spots, width, height }, event) {
  const box = plot.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * width;
  const y = ((event.clientY - box.top) / box.height) * height;
  const distance = (spot) => {
    const dx = Math.max(0, Math.abs(x - spot.x) - (spot.width ?? 0) / 2);
    const dy = Math.max(0, Math.abs(y - spot.y) - (spot.height ?? 0) / 2);
    return dx * dx + dy * dy;
  };
  let best = null;
  let least = 60 * 60;
  for (const spot of spots) {
    const found = distance(spot);
    if (found < least) [best, least] = [spot, found];
  }
  return best;
}

/** Show a spot's value beneath the chart and mark its place; null shows the hint. */
function read(frame, spot) {
  const { cursor, readout, width, height } = frame;
  frame.current = spot;
  readout.textContent = spot ? spot.text : HINT;
  cursor.hidden = spot === null;
  if (spot === null) return;
  if (spot.key !== undefined) frame.options.onRead?.(spot.key);
  const [wide, high] = [spot.width ?? 10, spot.height ?? 10];
  const places = { left: (spot.x - wide / 2) / width, top: (spot.y - high / 2) / height };
  for (const [name, share] of Object.entries({ ...places, width: wide / width, height: high / height })) {
    cursor.style.setProperty(name, `${100 * share}%`);
  }
}

function onKey(frame, event) {
  const { spots, current } = frame;
  if (event.key === "Enter" && current) return select(frame, current);
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: "up", ArrowDown: "down", Home: "home", End: "end" };
  const step = steps[event.key];
  if (step === undefined || !spots.length) return undefined;
  event.preventDefault();
  return read(frame, moved(spots, current, step));
}

/** Find the next spot: sideways in the order of the spots, up and down in the next group at the same place. */
function moved(spots, current, step) {
  if (step === "home" || (current === null && step !== "end")) return spots[0];
  if (step === "end") return spots.at(-1);
  const at = spots.indexOf(current);
  if (typeof step === "number") return spots[Math.max(0, Math.min(spots.length - 1, at + step))];
  const groups = [...new Set(spots.map((spot) => spot.group))];
  const next = groups[groups.indexOf(current.group) + (step === "down" ? 1 : -1)];
  const others = spots.filter((spot) => spot.group === next);
  if (next === undefined || !others.length) return current;
  return others.reduce((a, b) => (Math.abs(b.x - current.x) < Math.abs(a.x - current.x) ? b : a));
}

function select(frame, spot) {
  if (spot && spot.key !== undefined) frame.options.onSelect?.(spot.key);
}
