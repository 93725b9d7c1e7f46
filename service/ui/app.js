// The frame: which view an address shows, the theme, and the key.

import { key, onKeyNeeded } from "./api.js";
import { announce, el, fill, notice } from "./dom.js";
import { showCheckpoint } from "./checkpoint.js";
import { showCompare } from "./compare.js";
import { showHome } from "./home.js";
import { showJob } from "./job.js";
import { showJobs } from "./jobs.js";

const main = document.getElementById("main");

// A view fills the element; what it leaves running ends with the signal.
const VIEWS = [
  [/^$/, "Checkpoints", showHome],
  [/^jobs$/, "Jobs", showJobs],
  [/^checkpoints\/(.+)$/, "Checkpoint", showCheckpoint],
  [/^jobs\/(.+)$/, "Job", showJob],
  [/^compare$/, "Comparison", showCompare],
];

let leave = new AbortController();

async function route() {
  const hash = location.hash || "#/";
  if (!hash.startsWith("#/")) return;
  const [path, query = ""] = hash.slice(2).split("?", 2);
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const view = el("div", { class: "stack" });
  fill(main, view);
  markCurrent(path);
  const [title, show, argument] = found(path);
  document.title = argument === undefined ? `${title} – Eckart` : `${argument} – ${title} – Eckart`;
  try {
    await show(view, { argument, query: new URLSearchParams(query), signal });
  } catch (error) {
    if (!signal.aborted)
      fill(view, el("h1", {}, title), notice(error, el("p", {}, el("a", { href: "#/" }, "Back to the checkpoints"))));
  }
}

function found(path) {
  for (const [pattern, title, show] of VIEWS) {
    const match = pattern.exec(path);
    if (match) return [title, show, match[1] === undefined ? undefined : decoded(match[1])];
  }
  return [
    "Not found",
    (view) => fill(view, el("h1", {}, "No such page"), el("a", { href: "#/" }, "Back to the checkpoints")),
  ];
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function markCurrent(path) {
  const own = path === "" || path.startsWith("checkpoints/") ? "#/" : "#/jobs";
  for (const link of document.querySelectorAll(".top nav a")) {
    if (link.getAttribute("href") === own) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

// The theme: that of the system, until one is chosen.

const THEMES = { "": "Auto", light: "Light", dark: "Dark" };
const themeButton = document.getElementById("theme");

function showTheme() {
  const name = THEMES[document.documentElement.dataset.theme ?? ""];
  themeButton.textContent = name;
  themeButton.setAttribute("aria-label", `Theme: ${name}`);
}

themeButton.addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.theme ?? "") + 1) % names.length];
  if (next === "") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  localStorage.setItem("eckart.theme", next);
  showTheme();
});

// The key: asked for where the service answers 401, and kept until the tab is closed.

const keyButton = document.getElementById("key");

function showKey() {
  keyButton.hidden = key.get() === null;
}

keyButton.addEventListener("click", () => {
  key.forget();
  showKey();
  route();
});

onKeyNeeded(
  () =>
    new Promise((resolve) => {
      const wrong = key.get() !== null;
      const secret = el("input", { type: "password", id: "secret", autocomplete: "off", required: true });
      const dialog = el(
        "dialog",
        { "aria-labelledby": "key-title" },
        el(
          "form",
          { class: "stack", method: "dialog" },
          el("h2", { id: "key-title" }, "This service needs a key"),
          el(
            "p",
            { class: "muted" },
            wrong ? "The key that you gave is not known. " : "",
            "Its operator gives out keys.",
          ),
          el("label", {}, "Key", secret),
          el("p", { class: "small muted" }, "It is kept in this tab until you close it."),
          el(
            "div",
            { class: "row" },
            el("button", { class: "primary", value: "use" }, "Use this key"),
            el("button", { value: "", type: "button", onclick: () => dialog.close("") }, "Cancel"),
          ),
        ),
      );
      dialog.addEventListener("close", () => {
        const given = dialog.returnValue === "use" && secret.value.trim() !== "";
        if (given) key.set(secret.value.trim());
        dialog.remove();
        showKey();
        resolve(given ? key.get() : null);
      });
      document.body.append(dialog);
      dialog.showModal();
    }),
);

// A file that is dropped beside the place for it would replace the page.
for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());

addEventListener("hashchange", () => {
  route();
  main.focus({ preventScroll: false });
  announce(document.title);
});
showTheme();
showKey();
route();
