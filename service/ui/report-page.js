// The report as one file: the document is in the page, as data.

import { html } from "./chart-parts.js";
import { renderReport } from "./report.js";

const report = JSON.parse(document.getElementById("report-data").textContent);
const main = document.querySelector("main");
const { points, digits } = report.page;
const thinned =
  `Spectra are thinned to at most ${points} points, figures of layers are cut to ${digits} digits, and the ` +
  "columns and rows that were chosen are left out: report.json has them all.";

const place = html("div");
main.replaceChildren(html("h1", {}, "Eckart report"), place, html("p", { class: "muted" }, thinned));
document.title = `Eckart report ${report.job_id ?? ""}`.trim();
renderReport(place, report);
