// A job: its place in the queue, its progress, its end, and what to do then.

import { Problem, get, jobPath, post, remove } from "./api.js";
import { announce, el, fill, notice } from "./dom.js";
import { follow } from "./events.js";
import { clock, percent, plural, seconds, time } from "./format.js";
import { stateOf } from "./jobs.js";
import { showResult } from "./result.js";
import { lastSpec, short, withoutDefaults } from "./spec.js";

export async function showJob(view, { argument: id, signal }) {
  const job = await get(jobPath(id), { signal });
  const shown = new JobView(job, signal);
  fill(view, shown.element);
  shown.show(job);
  if (job.finished_at === null) await shown.watch();
}

class JobView {
  #id;
  #job;
  #signal;
  #parts;

  constructor(job, signal) {
    this.#id = job.id;
    this.#signal = signal;
    const bar = el("progress", { max: 1, value: 0, "aria-label": "Progress of the job" });
    this.#parts = {
      state: el("span"),
      bar,
      layer: el("p", { class: "small muted" }),
      actions: el("div", { class: "row" }),
      end: el("div", { class: "stack" }),
      times: el("p", { class: "small muted" }),
    };
    const p = this.#parts;
    const again = `#/checkpoints/${encodeURIComponent(job.checkpoint)}`;
    this.element = el(
      "div",
      { class: "stack" },
      el(
        "div",
        { class: "head" },
        el(
          "div",
          {},
          el("h1", {}, short(withoutDefaults(job.spec))),
          el(
            "p",
            { class: "muted" },
            "on ",
            el("a", { href: again }, job.checkpoint),
            " · ",
            el("span", { class: "mono" }, job.id),
          ),
        ),
        p.actions,
      ),
      el(
        "section",
        { class: "panel stack", "aria-label": "Progress" },
        el("div", { class: "head" }, p.state, p.times),
        bar,
        p.layer,
      ),
      p.end,
    );
  }

  /** Follow the events until the job has ended. */
  async watch() {
    for await (const event of follow(this.#id, this.#signal)) {
      if (event.name === "progress") this.#showProgress(event.progress);
      else this.show(event.job);
    }
  }

  show(job) {
    const changed = this.#job?.state !== job.state;
    this.#job = job;
    const p = this.#parts;
    fill(p.state, stateOf(job));
    p.times.textContent = times(job);
    this.#showProgress(job.progress);
    if (!changed) return;
    announce(`The job is ${job.state}`);
    this.#showActions(job);
    this.#showEnd(job);
  }

  #showProgress(progress) {
    const { bar, layer } = this.#parts;
    const { state } = this.#job;
    bar.value = state === "succeeded" ? 1 : progress.fraction;
    bar.hidden = state === "failed" || state === "canceled";
    if (state === "queued") layer.textContent = placeInQueue(this.#job);
    else if (state === "running" && progress.layers_total === 0) layer.textContent = "Reading the files …";
    else
      layer.textContent =
        `${progress.layers_done} of ${plural(progress.layers_total, "layer")} · ` +
        `${percent(progress.fraction, 0)}${progress.layer ? ` · ${progress.layer}` : ""}`;
    layer.hidden = state === "canceled" && progress.layers_total === 0;
  }

  #showActions(job) {
    const button = (text, act, kind = "") =>
      el("button", { type: "button", class: kind, onclick: (event) => this.#act(event.target, act) }, text);
    const actions = [];
    if (job.finished_at === null) actions.push(button("Cancel", () => post(jobPath(this.#id, "/cancel")), "danger"));
    if (canResume(job)) actions.push(button("Resume", () => post(jobPath(this.#id, "/resume")), "primary"));
    if (job.finished_at !== null) actions.push(button("Delete", () => this.#delete(), "danger"));
    fill(this.#parts.actions, actions);
  }

  async #act(button, act) {
    button.disabled = true;
    try {
      const job = await act();
      if (job) {
        const resumed = this.#job.finished_at !== null && job.finished_at === null;
        this.show(job);
        if (resumed) await this.watch();
      }
    } catch (error) {
      if (!this.#signal.aborted) fill(this.#parts.end, notice(error));
    }
    button.disabled = false;
  }

  async #delete() {
    if (!confirm("Delete this job and its files?")) return;
    await remove(jobPath(this.#id));
    location.hash = "#/jobs";
  }

  #showEnd(job) {
    const { end } = this.#parts;
    if (job.state === "failed") fill(end, notice(new Problem(0, job.error ?? {}), whatNext(job)), warnings(job));
    else if (job.state === "canceled") fill(end, el("p", { class: "muted" }, "It was canceled and has no result."));
    else if (job.state === "succeeded")
      showResult(end, job, this.#signal).catch((error) => this.#signal.aborted || fill(end, notice(error)));
    else fill(end, warnings(job));
  }
}

/** Why a job has not begun: it pauses after trouble, or others are ahead. */
function placeInQueue({ waiting, queue_position: ahead }) {
  if (waiting !== null)
    return `${waiting.title}: it is tried again at ${clock(waiting.next_attempt_at)}, or soon after.`;
  if (ahead === null) return "It waits before its next attempt.";
  return ahead === 0 ? "Next in the queue." : `${plural(ahead, "job")} ahead in the queue.`;
}

/** A failure of the machine may pass; one of the spec or the files stays. */
const canResume = (job) => job.state === "failed" && (job.error?.status ?? 500) >= 500;

function whatNext(job) {
  if (canResume(job))
    return el("p", { class: "small" }, "“Resume” goes on with the layers that are finished, under the same id.");
  return el(
    "p",
    { class: "small" },
    "It would fail again. ",
    el(
      "a",
      {
        href: `#/checkpoints/${encodeURIComponent(job.checkpoint)}`,
        onclick: () => lastSpec.put(job.checkpoint, withoutDefaults(job.spec)),
      },
      "Change the spec",
    ),
    " and start a new job.",
  );
}

function warnings(job) {
  if (job.warnings.length === 0) return null;
  return el(
    "details",
    { class: "panel" },
    el("summary", {}, plural(job.warnings.length, "warning")),
    el(
      "ul",
      {},
      job.warnings.map((text) => el("li", {}, text)),
    ),
  );
}

function times(job) {
  const parts = [`created ${time(job.created_at)}`];
  if (job.started_at && job.finished_at)
    parts.push(`took ${seconds((new Date(job.finished_at) - new Date(job.started_at)) / 1000)}`);
  if (job.attempt > 1) parts.push(`attempt ${job.attempt}`);
  if (job.expires_at) parts.push(`kept until ${time(job.expires_at)}`);
  return parts.join(" · ");
}
