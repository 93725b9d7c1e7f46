import { el, fill } from "./dom.js";

export function showJobs(view) {
  fill(view, el("h1", {}, "Eckart"));
}
