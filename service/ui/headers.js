// A plan from the headers of files alone, before any of their weights is sent.

import { send } from "./api.js";

// The service takes no larger one, and says so.
const MOST_HEADER_BYTES = 32 * 2 ** 20 + 1;

/** Ask what a spec would do to files that are not stored yet; `taken` are files with their names. */
export async function planOfHeaders(taken, spec) {
  const form = new FormData();
  for (const { file, name } of taken) {
    const part = name.endsWith(".safetensors") ? await headOf(file) : partOf(file, name);
    if (part !== null) form.append("header", part, name);
  }
  form.append("spec", JSON.stringify(spec));
  return (await send("/v1/plans", { method: "POST", body: form })).json();
}

/** The length of the header, in eight bytes, and the header. */
async function headOf(file) {
  const length = new DataView(await file.slice(0, 8).arrayBuffer());
  const bytes = length.byteLength < 8 ? 0 : Number(length.getBigUint64(0, true));
  return file.slice(0, 8 + Math.min(bytes, MOST_HEADER_BYTES));
}

const partOf = (file, name) => (name === "config.json" || name.includes(".safetensors.index.") ? file : null);
