import { el, fill } from "./dom.js";

export function showCheckpoint(view) {
  fill(view, el("h1", {}, "Eckart"));
}
