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
  return children
    .flat(Infinity)
    .filter((child) => child != null && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}

/** Tell those who hear the page what has changed. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}

/** Text to be copied. */
export function code(text, label) {
  const block = el("pre", { tabindex: "0", role: "group", "aria-label": label }, text);
  const copy = el(
    "button",
    { type: "button", "aria-label": `Copy ${label}`, onclick: () => copied(block, copy, label) },
    "Copy",
  );
  return el("div", { class: "code" }, block, copy);
}

async function copied(block, button, label) {
  // Pages without https have no clipboard; then the text is selected.
  if (!navigator.clipboard) {
    getSelection().selectAllChildren(block);
    return;
  }
  await navigator.clipboard.writeText(block.textContent);
  button.textContent = "Copied";
  announce(`${label} copied`);
}

/** Show a problem: what happened, which fields, and what to do. */
export function notice(problem, ...more) {
  const fields = (problem.fields ?? []).map((field) =>
    el(
      "li",
      {},
      el("span", { class: "mono" }, field.pointer),
      field.detail === problem.message ? "" : ` ${field.detail}`,
    ),
  );
  return el(
    "div",
    { class: "notice bad", role: "alert" },
    el("strong", {}, problem.title ?? "Something went wrong"),
    el("p", {}, problem.message),
    fields.length > 0 && el("ul", {}, fields),
    more,
  );
}

/** A table whose first column names the rows; the others are figures, or with `prose` text that wraps. */
export function table(caption, header, rows, { prose = false } = {}) {
  const kind = prose ? "prose" : "number";
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table",
      {},
      el("caption", { class: "visually-hidden" }, caption),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          header.map((name, i) =>
            i === 0 && name === "" ? el("td") : el("th", { scope: "col", class: i > 0 ? kind : null }, name),
          ),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map((row) =>
          el(
            "tr",
            { class: row.class },
            el("th", { scope: "row", class: "name" }, row.cells[0]),
            row.cells.slice(1).map((content) => el("td", { class: kind }, content ?? "–")),
          ),
        ),
      ),
    ),
  );
}
