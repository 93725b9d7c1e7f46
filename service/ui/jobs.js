// All jobs: by state and checkpoint, and which to compare.

import { list } from "./api.js";
import { el, fill, notice } from "./dom.js";
import { bytes, error as errorText, percent, time } from "./format.js";

const STATES = ["", "queued", "running", "succeeded", "failed", "canceled"];
const MOST_SHOWN = 200;
export const MOST_COMPARED = 5;

export const jobLink = (id) => `#/jobs/${encodeURIComponent(id)}`;

export function stateOf(job) {
  return el("span", { class: `state ${job.state}` }, job.state);
}

/** A job in a line: its state, what it is on, and what came of it. */
export function jobLine(job) {
  return el(
    "div",
    { class: "job" },
    stateOf(job),
    el("a", { href: jobLink(job.id), class: "mono" }, job.id.slice(0, 9)),
    el("span", {}, job.checkpoint),
    el("span", { class: "muted small" }, outcome(job)),
    el("span", { class: "muted small" }, time(job.created_at)),
  );
}

export function outcome(job) {
  if (job.summary)
    return (
      `−${percent(job.summary.parameter_savings)} parameters, ` +
      `${bytes(job.summary.bytes_after)}, error ${errorText(job.summary.relative_error)}`
    );
  if (job.error) return job.error.title;
  if (job.waiting) return `waits: ${job.waiting.title.toLowerCase()}`;
  if (job.state === "queued" && job.queue_position !== null) return `${job.queue_position} ahead`;
  return job.state === "running" ? percent(job.progress.fraction, 0) : "";
}

export async function showJobs(view, { query, signal }) {
  const body = el("div");
  const state = el(
    "select",
    { onchange: () => go() },
    STATES.map((name) => el("option", { value: name }, name || "any state")),
  );
  const checkpoint = el("input", { type: "search", placeholder: "any checkpoint", onchange: () => go() });
  state.value = query.get("state") ?? "";
  checkpoint.value = query.get("checkpoint") ?? "";
  const go = () => {
    const wanted = new URLSearchParams(
      Object.entries({ state: state.value, checkpoint: checkpoint.value.trim() }).filter(([, value]) => value),
    );
    history.replaceState(null, "", `#/jobs${wanted.size ? `?${wanted}` : ""}`);
    load();
  };
  const load = async () => {
    try {
      const jobs = await list("/v1/jobs", "jobs", {
        most: MOST_SHOWN,
        state: state.value,
        fits: (job) => job.checkpoint.includes(checkpoint.value.trim()),
      });
      if (!signal.aborted) fill(body, jobs.length ? chooser(jobs) : el("p", { class: "muted" }, "No job fits."));
    } catch (error) {
      fill(body, notice(error));
    }
  };
  fill(
    view,
    el("h1", {}, "Jobs"),
    el("div", { class: "row" }, el("label", {}, "State", state), el("label", {}, "Checkpoint", checkpoint)),
    body,
  );
  await load();
}

/** Jobs with boxes: two to five of one checkpoint can be compared. */
export function chooser(jobs, { lineOf = jobLine } = {}) {
  const boxes = new Map();
  const compare = el("a", { class: "button", "aria-disabled": "true" }, "Compare");
  const hint = el("span", { class: "small muted" }, "Choose two to five finished jobs of one checkpoint.");
  const update = () => {
    const chosen = jobs.filter((job) => boxes.get(job.id)?.checked);
    const one = new Set(chosen.map((job) => job.checkpoint)).size <= 1;
    const ready = one && chosen.length >= 2 && chosen.length <= MOST_COMPARED;
    compare.setAttribute("aria-disabled", String(!ready));
    compare.classList.toggle("primary", ready);
    if (ready) compare.href = `#/compare?jobs=${chosen.map((job) => encodeURIComponent(job.id)).join(",")}`;
    else compare.removeAttribute("href");
    hint.textContent = one
      ? "Choose two to five finished jobs of one checkpoint."
      : "These are jobs of different checkpoints.";
  };
  const row = (job) => {
    const box = el("input", {
      type: "checkbox",
      disabled: job.state !== "succeeded",
      "aria-label": `Compare ${job.id}`,
      onchange: update,
    });
    boxes.set(job.id, box);
    return el("li", { class: "row" }, box, lineOf(job));
  };
  return el(
    "section",
    { class: "panel stack", "aria-label": "Jobs" },
    el("ul", { class: "plain" }, jobs.map(row)),
    el("div", { class: "row" }, compare, hint),
  );
}
