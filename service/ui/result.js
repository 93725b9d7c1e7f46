// What a job gave: the lines that run it, its files, how to repeat it, and its report.

import { ROOT, get, jobPath, key, send } from "./api.js";
import { code, el, fill, notice } from "./dom.js";
import { bytes } from "./format.js";
import { byCurl, byPython, linesToRun } from "./recipes.js";
import { renderReport } from "./report.js";
import { withoutDefaults } from "./spec.js";

export async function showResult(element, job, signal) {
  const report = await get(jobPath(job.id, "/report"), { signal });
  const run = await linesToRun(job, report);
  if (signal.aborted) return;
  const spec = withoutDefaults(job.spec);
  const keyed = key.get() !== null;
  const shown = el("div");
  fill(
    element,
    el(
      "div",
      { class: "halves" },
      el("section", { class: "panel stack" }, el("h2", {}, "Download"), downloads(job, report), el("p", { class: "small muted" }, `The lines that run it take ${run.name ?? `the files from a folder ${run.folder}`}.`)),
      el(
        "section",
        { class: "panel stack" },
        el("h2", {}, "Run it"),
        code(run.lines, "the lines that run it"),
        el("details", {}, el("summary", {}, "Make it again"), el("div", { class: "stack" }, el("h3", {}, "With Python"), code(byPython(job, spec, keyed), "the lines for Python"), el("h3", {}, "With curl"), code(byCurl(job, spec, keyed), "the lines for curl"))),
        el("details", {}, el("summary", {}, "The spec"), code(JSON.stringify(spec, null, 2), "the spec")),
      ),
    ),
    shown,
  );
  renderReport(shown, report);
}

function downloads(job, report) {
  const names = [...report.output.files.map((file) => [file.name, file.size_bytes]), ["report.json", null]];
  const name = (file) => jobPath(job.id, `/files/${encodeURIComponent(file)}`);
  const fault = el("div");
  const link = (path, as, text, kind, options) => download(path, as, text, kind, fault, options);
  return el(
    "div",
    { class: "stack" },
    el("div", { class: "row" }, link(jobPath(job.id, "/archive"), `${job.checkpoint}-compressed.tar`, `All files as a tar, ${bytes(report.output.bytes)}`, "button primary"), link(jobPath(job.id, "/report?format=html"), `${job.checkpoint}-report.html`, "Report as a page", "button", { opened: true })),
    fault,
    el("ul", { class: "plain small" }, names.map(([file, size]) => el("li", { class: "head" }, link(name(file), file, file, "mono"), el("span", { class: "muted" }, size === null ? "" : bytes(size))))),
  );
}

/** A link, which the browser follows by itself; with a key, which a link cannot send, the file is fetched first. */
function download(path, as, text, kind, fault, { opened = false } = {}) {
  const fetched = async (event) => {
    if (key.get() === null) return;
    event.preventDefault();
    try {
      const url = URL.createObjectURL(await (await send(path)).blob());
      el("a", { href: url, download: as }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
    } catch (error) {
      fill(fault, notice(error));
    }
  };
  const way = opened ? { target: "_blank", rel: "noopener" } : { download: as };
  return el("a", { href: ROOT + path, class: kind, onclick: fetched, ...way }, text);
}
