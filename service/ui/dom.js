// Elements with text children: whatever comes from a checkpoint or a problem stays text.

/** Make an element. Functions become listeners, true and false set or leave out an attribute. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...kept(children));
  return element;
}

/** Put these children in place of what an element has. */
export function fill(element, ...children) {
  element.replaceChildren(...kept(children));
  return element;
}

function kept(children) {
  return children.flat(Infinity).filter((child) => child != null && child !== false).map((child) => (child instanceof Node ? child : String(child)));
}

/** Tell those who hear the page what has changed. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}

export function code(text, label) {
  const copy = el("button", {
    type: "button",
    "aria-label": `Copy ${label}`,
    onclick: async () => {
      await navigator.clipboard?.writeText(text);
      copy.textContent = "Copied";
      announce(`${label} copied`);
    },
  }, "Copy");
  return el("div", { class: "code" }, el("pre", { tabindex: "0", role: "group", "aria-label": label }, text), copy);
}

/** Show a problem: what happened, which fields, and what to do. */
export function notice(problem, ...more) {
  const fields = (problem.fields ?? []).map((field) => el("li", {}, el("span", { class: "mono" }, field.pointer), " ", field.detail));
  return el(
    "div",
    { class: "notice bad", role: "alert" },
    el("strong", {}, problem.title ?? "Something went wrong"),
    el("p", {}, problem.message),
    fields.length > 0 && el("ul", {}, fields),
    more,
  );
}

export function table(caption, header, rows, { hidden = false } = {}) {
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table",
      {},
      el("caption", { class: hidden ? "visually-hidden" : null }, caption),
      el("thead", {}, el("tr", {}, header.map((name, i) => el("th", { scope: "col", class: i > 0 ? "number" : null }, name)))),
      el("tbody", {}, rows.map((row) => el("tr", { class: row.class }, el("th", { scope: "row", class: "name" }, row.cells[0]), row.cells.slice(1).map((content) => el("td", { class: "number" }, content ?? "–"))))),
    ),
  );
}
