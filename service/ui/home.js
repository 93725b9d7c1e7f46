import { el, fill } from "./dom.js";

export function showHome(view) {
  fill(view, el("h1", {}, "Eckart"));
}
