// Tables of the report.

import { digits, html } from "./chart-parts.js";
import { errorOf, isFactored, optimumOf, shareOf } from "./layers.js";

// Beyond so many rows a table waits until somebody asks for the rest.
const ROWS_AT_FIRST = 1000;

const COLUMNS = [
  { name: "layer", value: (layer) => layer.name },
  { name: "shape", value: (layer) => layer.shape?.[0] ?? 0, text: (layer) => (layer.shape ?? []).join(" × ") },
  {
    name: "outcome",
    value: (layer) => (isFactored(layer) ? layer.method : `kept: ${layer.reason ?? ""}`),
    plain: true,
  },
  { name: "rank", value: (layer) => layer.rank ?? null },
  { name: "break-even", value: (layer) => layer.break_even_rank ?? null },
  { name: "bytes kept", value: shareOf, text: (layer) => `${Number((100 * shareOf(layer)).toPrecision(3))} %` },
  { name: "error", value: errorOf },
  { name: "best possible", value: optimumOf },
  { name: "predicted loss", value: (layer) => layer.predicted_loss ?? null },
  { name: "seconds", value: (layer) => layer.seconds ?? null },
];

/** Make a table in a box that scrolls; cells are text. */
export function table(name, head, rows) {
  const cells = (row) => row.map((text) => html("td", {}, String(text)));
  const heads = head.map((text) => html("th", { scope: "col" }, text));
  return scrolled(
    name,
    html("tr", {}, ...heads),
    rows.map((row) => html("tr", {}, ...cells(row))),
  );
}

function scrolled(name, head, rows) {
  const made = html("table", {}, html("thead", {}, head), html("tbody", {}, ...rows));
  return html("div", { class: "scrolled", tabindex: "0", role: "region", "aria-label": name }, made);
}

/** Make the table of all layers, which sorts by the column whose head is pressed. */
export function layerTable(layers) {
  const known = COLUMNS.filter(({ value }) => layers.some((layer) => value(layer) !== null));
  const order = { column: null, descending: false, limit: ROWS_AT_FIRST };
  const heads = known.map((column) => html("th", { scope: "col" }, sorter(column)));
  const box = scrolled("Layers", html("tr", {}, ...heads), []);
  const body = box.querySelector("tbody");
  const more = html("button", { type: "button" }, `Show all ${layers.length} layers`);
  const fill = () => {
    const shown = sorted(layers, order).slice(0, order.limit);
    body.replaceChildren(...shown.map((layer) => html("tr", {}, ...known.map((column) => cell(column, layer)))));
    more.hidden = order.limit >= layers.length;
  };
  heads.forEach((head, index) => {
    head.addEventListener("click", () => {
      order.descending = order.column === known[index] ? !order.descending : false;
      order.column = known[index];
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
      fill();
    });
  });
  more.addEventListener("click", () => {
    order.limit = Infinity;
    fill();
  });
  fill();
  return html("div", {}, box, more);
}

const sorter = ({ name }) => html("button", { type: "button", class: "sorter" }, name);

function cell({ value, text, plain }, layer) {
  const known = value(layer);
  const shown = text ? text(layer) : typeof known === "string" ? known : digits(known);
  return html("td", typeof known === "string" ? { class: plain ? "" : "name" } : { class: "number" }, shown);
}

function sorted(layers, { column, descending }) {
  if (column === null) return layers;
  const compare = (a, b) => {
    const [p, q] = [column.value(a), column.value(b)];
    if (p === null || q === null) return (p === null) - (q === null);
    const order = typeof p === "string" ? p.localeCompare(q, "en", { numeric: true }) : p - q;
    return descending ? -order : order;
  };
  return [...layers].sort(compare);
}
