// What a job gave: the lines that run it, its files, how to repeat it, and its report.

import { ROOT, get, jobPath, key, post } from "./api.js";
import { code, el, fill, notice } from "./dom.js";
import { bytes } from "./format.js";
import { byCurl, byPython, linesToRun, needsOf } from "./recipes.js";
import { renderReport } from "./report.js";
import { withoutDefaults } from "./spec.js";

export async function showResult(element, job, signal) {
  const report = await get(jobPath(job.id, "/report"), { signal });
  const run = await linesToRun(job, report);
  if (signal.aborted) return;
  const spec = withoutDefaults(job.spec);
  const keyed = key.get() !== null;
  const shown = el("div");
  const recipe = (title, lines, label) => [el("h3", {}, title), code(lines, label)];
  const again = el(
    "details",
    {},
    el("summary", {}, "Make it again"),
    el(
      "div",
      { class: "stack" },
      recipe("With Python", byPython(job, spec, keyed), "the lines for Python"),
      recipe("With curl", byCurl(job, spec, keyed), "the lines for curl"),
    ),
  );
  const asked = el("details", {}, el("summary", {}, "The spec"), code(JSON.stringify(spec, null, 2), "the spec"));
  fill(
    element,
    el(
      "div",
      { class: "halves" },
      el("section", { class: "panel stack" }, el("h2", {}, "Download"), downloads(job, report)),
      el("section", { class: "panel stack" }, el("h2", {}, "Run it"), howToRun(job, run), again, asked),
    ),
    shown,
  );
  renderReport(shown, report);
}

/** What turns the download into a model, in the order in which it is done. */
function howToRun(job, run) {
  const note = (text) => el("p", { class: "small muted" }, text);
  const needs = `It needs ${needsOf(run.lines)}.`;
  const lines = code(run.lines, "the lines that run it");
  if (run.name !== null)
    return [note(`Download ${run.name} from the list. Then, in Python beside it:`), lines, note(needs)];
  const whose =
    run.subfolders.length > 0 ? "beside the folder that you dropped, whose subfolders were not sent" : "where they are";
  return [
    note(`Download all files as a tar, and unpack them ${whose}:`),
    code(unpacking(job, run).join("\n"), "the lines that unpack it"),
    note("Then, in Python beside the folder:"),
    lines,
    note(needs),
  ];
}

function unpacking(job, { folder, subfolders }) {
  const copied = subfolders.map((name) => `${job.checkpoint}/${name}`).join(" ");
  const copy = copied ? [`cp -r ${copied} ${folder}/`] : [];
  return [`mkdir ${folder}`, `tar xf ${job.id}.tar -C ${folder}`, ...copy];
}

function downloads(job, report) {
  const names = [...report.output.files.map((file) => [file.name, file.size_bytes]), ["report.json", null]];
  const fault = el("div");
  const link = (to, as, text, kind, options) => download({ job: job.id, to }, as, text, kind, fault, options);
  return el(
    "div",
    { class: "stack" },
    el(
      "div",
      { class: "row" },
      link(
        "archive",
        `${job.checkpoint}-compressed.tar`,
        `All files as a tar, ${bytes(report.output.bytes)}`,
        "button primary",
      ),
      link("report?format=html", `${job.checkpoint}-report.html`, "Report as a page", "button", { opened: true }),
    ),
    fault,
    el(
      "ul",
      { class: "plain small" },
      names.map(([file, size]) =>
        el(
          "li",
          { class: "head" },
          link(`files/${encodeURIComponent(file)}`, file, file, "mono"),
          el("span", { class: "muted" }, size === null ? "" : bytes(size)),
        ),
      ),
    ),
  );
}

/** A link, which the browser follows by itself; with a key, which a link cannot send, to a signed address. */
function download({ job, to }, as, text, kind, fault, { opened = false } = {}) {
  const way = opened ? { target: "_blank", rel: "noopener" } : { download: as };
  const followed = async (event) => {
    if (key.get() === null) return;
    event.preventDefault();
    try {
      const { href } = await post(jobPath(job, `/links?to=${encodeURIComponent(to)}`));
      // The browser writes what comes to the disk: no size is too large.
      el("a", { href, ...way }).click();
      fill(fault);
    } catch (error) {
      fill(fault, notice(error));
    }
  };
  return el("a", { href: ROOT + jobPath(job, `/${to}`), class: kind, onclick: followed, ...way }, text);
}
