import { el, fill } from "./dom.js";

export function showJob(view) {
  fill(view, el("h1", {}, "Eckart"));
}
