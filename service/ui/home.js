// The first view: drop a checkpoint, or choose a stored one.

import { checkpointPath, list, remove } from "./api.js";
import { el, fill, notice } from "./dom.js";
import { dropZone } from "./drop.js";
import { bytes, plural, time } from "./format.js";
import { jobLine } from "./jobs.js";

const MOST_SHOWN = 100;
const RECENT = 5;

export async function showHome(view, { signal }) {
  const stored = el("div", {}, el("p", { class: "muted" }, "Loading …"));
  const recent = el("div");
  const onStored = (id) => {
    location.hash = `#/checkpoints/${encodeURIComponent(id)}`;
  };
  fill(
    view,
    el(
      "div",
      { class: "stack" },
      el("h1", {}, "Make a checkpoint smaller"),
      el(
        "p",
        { class: "lead" },
        "Drop a safetensors checkpoint, choose a size, see what it costs for each layer, " +
          "and start. Linear weights are replaced by low-rank factors or integers, convolutions if the spec has conv.",
      ),
    ),
    el(
      "div",
      { class: "halves" },
      dropZone({ onStored, signal }),
      el("section", { class: "panel" }, el("h2", {}, "Stored checkpoints"), stored),
    ),
    recent,
  );
  await Promise.all([showStored(stored), showRecent(recent)]);
}

async function showStored(element) {
  const found = await list("/v1/checkpoints", "checkpoints", { most: MOST_SHOWN });
  if (found.length === 0) {
    fill(element, el("p", { class: "muted" }, "None yet."));
    return;
  }
  fill(element, el("ul", { class: "plain" }, found.map(storedLine)));
}

function storedLine(checkpoint) {
  const item = el("li", { class: "head" });
  const drop = async () => {
    if (!confirm(`Delete ${checkpoint.id} and its ${plural(checkpoint.files.length, "file")}?`)) return;
    try {
      await remove(checkpointPath(checkpoint.id));
      item.remove();
    } catch (error) {
      fill(item, notice(error));
    }
  };
  return fill(
    item,
    el(
      "div",
      {},
      el("a", { href: `#/checkpoints/${encodeURIComponent(checkpoint.id)}` }, checkpoint.id),
      el(
        "p",
        { class: "small muted" },
        `${bytes(checkpoint.bytes)} · ${plural(checkpoint.files.length, "file")} · ` +
          `${time(checkpoint.stored_at)}${checkpoint.complete ? "" : " · files are missing"}`,
      ),
    ),
    el("button", { type: "button", class: "quiet", "aria-label": `Delete ${checkpoint.id}`, onclick: drop }, "Delete"),
  );
}

async function showRecent(element) {
  const jobs = await list("/v1/jobs", "jobs", { most: RECENT });
  if (jobs.length === 0) return;
  fill(
    element,
    el(
      "section",
      { class: "panel" },
      el("div", { class: "head" }, el("h2", {}, "Latest jobs"), el("a", { href: "#/jobs" }, "All jobs")),
      el(
        "ul",
        { class: "plain" },
        jobs.map((job) => el("li", {}, jobLine(job))),
      ),
    ),
  );
}
