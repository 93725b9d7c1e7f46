// A stored checkpoint: the plan of a job on it, what earlier jobs made of it, and how they follow from each other.

import { checkpointPath, each, get, jobPath, list, post } from "./api.js";
import { el, fill, notice } from "./dom.js";
import { dropZone } from "./drop.js";
import { familyTree } from "./family.js";
import { bytes, count, plural } from "./format.js";
import { Planner } from "./planner.js";
import { PlanView } from "./planview.js";
import { lastSpec } from "./spec.js";
import { SpecForm, aboutOf } from "./specform.js";
import { alike, spectraOf } from "./spectra.js";

const MOST_REPORTS = 3;
const MOST_JOBS = 30;

export async function showCheckpoint(view, { argument: id, signal }) {
  const [checkpoint, others] = await Promise.all([
    get(`${checkpointPath(id)}?limit=1`, { signal }),
    list("/v1/checkpoints", "checkpoints"),
  ]);
  const head = el(
    "div",
    { class: "head" },
    el(
      "div",
      {},
      el("h1", {}, checkpoint.id),
      el(
        "p",
        { class: "muted" },
        `${plural(checkpoint.files.length, "file")} · ${count(checkpoint.parameters)} ` +
          `parameters · ${bytes(checkpoint.bytes)}`,
      ),
    ),
  );
  if (!checkpoint.complete) {
    fill(view, head, missing(checkpoint, view, signal));
    return;
  }
  const start = el("button", { type: "button", class: "primary" }, "Compress");
  head.append(el("div", { class: "row" }, start));
  const plans = new PlanView();
  const earlier = new EarlierJobs(id, signal);
  const form = new SpecForm(
    lastSpec.get(id),
    aboutOf(
      checkpoint,
      others.map((other) => other.id),
    ),
    (spec) => {
      lastSpec.put(id, spec);
      planner.want(spec);
    },
  );
  const planner = new Planner((spec) => post("/v1/plans", { checkpoint: id, spec }, { signal }), {
    show: (plan, spec) => {
      plans.know(earlier.known(spec));
      plans.show(plan, spec);
    },
    fail: (error) => plans.fail(error),
    busy: (is) => plans.busy(is),
    signal,
  });
  const family = el("div");
  start.addEventListener("click", () => begin(start, id, form, plans));
  fill(
    view,
    head,
    el(
      "div",
      { class: "split" },
      el("section", { class: "panel", "aria-label": "What to do" }, form.element),
      plans.element,
    ),
    family,
  );
  form.take(form.spec);
  await earlier.load();
  if (signal.aborted || earlier.jobs.length === 0) return;
  fill(
    family,
    familyTree(id, earlier.jobs, earlier.specs, (spec) => form.take(spec)),
  );
  form.take(form.spec);
}

function missing(checkpoint, view, signal) {
  const again = () => showCheckpoint(view, { argument: checkpoint.id, signal });
  const names = checkpoint.missing.slice(0, 20);
  return [
    el(
      "div",
      { class: "notice warn" },
      el("strong", {}, "Files are missing"),
      el("p", {}, "A job needs all shards and their index. Drop those that are missing."),
      el(
        "ul",
        { class: "mono" },
        names.map((name) => el("li", {}, name)),
        checkpoint.missing.length > names.length && el("li", {}, "…"),
      ),
    ),
    dropZone({ id: checkpoint.id, onStored: again, signal }),
  ];
}

async function begin(button, id, form, plans) {
  button.disabled = true;
  try {
    const headers = {
      "Content-Type": "application/json",
      "Idempotency-Key": crypto.getRandomValues(new Uint32Array(4)).join("-"),
    };
    const job = await post("/v1/jobs", { checkpoint: id, spec: form.spec }, { headers });
    location.hash = `#/jobs/${encodeURIComponent(job.id)}`;
  } catch (error) {
    plans.fail(error);
    button.disabled = false;
  }
}

/** What earlier jobs on a checkpoint tell: their specs, their spectra and their errors. */
class EarlierJobs {
  jobs = [];
  specs = [];
  #reports = [];
  #found = new Map();

  constructor(checkpoint, signal) {
    this.checkpoint = checkpoint;
    this.signal = signal;
  }

  async load() {
    const { checkpoint, signal } = this;
    const jobs = await list("/v1/jobs", "jobs", { most: MOST_JOBS, checkpoint });
    const done = jobs.filter((job) => job.summary !== null).slice(0, MOST_REPORTS);
    [this.specs, this.#reports] = await Promise.all([
      each(jobs, async (job) => (await get(jobPath(job.id), { signal })).spec),
      each(done, (job) => get(jobPath(job.id, "/report"), { signal })),
    ]);
    this.jobs = jobs;
    this.#found.clear();
  }

  /** What counts for a spec: jobs whose errors are of its kind. The same answer for specs of one kind. */
  known(spec) {
    const kind = JSON.stringify([spec.calibration ?? null, spec.base ?? null]);
    if (!this.#found.has(kind)) this.#found.set(kind, this.#find(spec));
    return this.#found.get(kind);
  }

  #find(spec) {
    const report = this.#reports.find(
      (each) => alike(each.spec, spec) && each.layers.some((layer) => layer.singular_values),
    );
    const jobs = this.jobs.filter((job, i) => job.summary?.relative_error > 0 && alike(this.specs[i], spec));
    return {
      spectra: report ? spectraOf(report) : new Map(),
      jobs,
      from: report?.job_id ?? null,
      calibrated: Boolean(spec.calibration),
    };
  }
}
