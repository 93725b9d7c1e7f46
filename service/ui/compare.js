import { el, fill } from "./dom.js";

export function showCompare(view) {
  fill(view, el("h1", {}, "Eckart"));
}
