// Where files are dropped or chosen, sent with progress, and taken up again after a reload.

import { list } from "./api.js";
import { announce, el, fill, notice } from "./dom.js";
import { chosen, dropped, proposedId, sorted } from "./files.js";
import { bytes, count, percent, plural } from "./format.js";
import { planOfHeaders } from "./headers.js";
import { FIRST_SPEC } from "./spec.js";
import { begun, giveUp, upload } from "./upload.js";

const FINAL = new Set(["invalid-checkpoint", "unauthorized"]);

/**
 * A place to drop a checkpoint. `id` is that of one that lacks files; without it a free one is found.
 *
 * `onStored(id)` is called when all files are stored. The upload ends with the signal.
 */
export function dropZone({ id = null, onStored, signal }) {
  const body = el("div", { class: "stack" });
  const ready = () => fill(body, picker(take), unfinished());
  const take = async (given) => {
    try {
      await sendAll(body, given, id, signal, onStored);
    } catch (error) {
      if (signal.aborted) return;
      fill(body, notice(error, el("p", {}, el("button", { type: "button", onclick: ready }, "Choose again"))));
    }
  };
  ready();
  return body;
}

function picker(take) {
  const files = el("input", {
    type: "file",
    multiple: true,
    class: "visually-hidden",
    id: "files",
    tabindex: "-1",
    "aria-label": "Files of a checkpoint",
    onchange: () => take(chosen(files)),
  });
  const folder = el("input", {
    type: "file",
    webkitdirectory: true,
    class: "visually-hidden",
    id: "folder",
    tabindex: "-1",
    "aria-label": "Folder of a checkpoint",
    onchange: () => take(chosen(folder)),
  });
  const over = (event) => {
    event.preventDefault();
    zone.classList.add("over");
  };
  const zone = el(
    "section",
    {
      class: "drop",
      "aria-label": "Drop a checkpoint",
      ondragover: over,
      ondragenter: over,
      ondragleave: () => zone.classList.remove("over"),
      ondrop: async (event) => {
        event.preventDefault();
        zone.classList.remove("over");
        take(await dropped(event.dataTransfer));
      },
    },
    el("h2", {}, "Drop a checkpoint here"),
    el(
      "p",
      { class: "muted" },
      "A .safetensors file, all shards with their index, or the whole folder of a " +
        "model. With config.json and the tokenizer’s files, the result is a folder that runs.",
    ),
    el(
      "div",
      { class: "row" },
      el("button", { type: "button", class: "primary", onclick: () => files.click() }, "Choose files"),
      el("button", { type: "button", onclick: () => folder.click() }, "Choose a folder"),
    ),
    files,
    folder,
  );
  return zone;
}

/** Uploads that a reload has broken off: the same files go on where they were. */
function unfinished() {
  const open = begun.all().filter((record) => record.offset < record.size);
  if (open.length === 0) return null;
  return el(
    "section",
    { class: "notice warn", "aria-label": "Unfinished uploads" },
    el("strong", {}, "Unfinished uploads"),
    el("p", {}, "Drop or choose the same files again, and they go on where they stopped."),
    el(
      "ul",
      {},
      open.map((record) => {
        const item = el(
          "li",
          {},
          el("span", { class: "mono" }, record.name),
          ` for ${record.checkpoint}, ${percent(record.offset / record.size, 0)} of ${bytes(record.size)} sent `,
        );
        const drop = async () => {
          await giveUp(record);
          item.remove();
        };
        item.append(
          el(
            "button",
            { type: "button", class: "quiet", "aria-label": `Give up ${record.name}`, onclick: drop },
            "Give up",
          ),
        );
        return item;
      }),
    ),
  );
}

async function sendAll(body, { folder, files }, id, signal, onStored) {
  const { taken, left, weights } = sorted(files);
  if (!weights && id === null) throw refused(left);
  const cost = id === null ? await costOf(taken) : null;
  const checkpoint = id ?? begun.of(taken.at(-1).file)?.checkpoint ?? (await freeId(proposedId(folder, taken), taken));
  const stop = new AbortController();
  const both = AbortSignal.any([signal, stop.signal]);
  const total = taken.reduce((sum, { file }) => sum + file.size, 0);
  const bar = el("progress", { max: Math.max(total, 1), value: 0, "aria-label": `Upload of ${checkpoint}` });
  const told = el("p", { class: "small muted" });
  fill(
    body,
    el(
      "div",
      { class: "panel stack" },
      el("h2", {}, `Storing ${checkpoint}`),
      bar,
      told,
      cost,
      leftOut(left),
      el("div", { class: "row" }, el("button", { type: "button", onclick: () => stop.abort() }, "Stop")),
    ),
  );
  announce(`Storing ${checkpoint}`);
  const began = performance.now();
  let [done, first] = [0, null];
  for (const { file, name } of taken) {
    const onOffset = (offset) => {
      first ??= offset;
      bar.value = done + offset;
      const rate = (done + offset - first) / ((performance.now() - began) / 1000);
      told.textContent = `${name}: ${bytes(done + offset)} of ${bytes(total)}${rate > 0 ? `, ${bytes(rate)}/s` : ""}`;
    };
    try {
      await upload(file, checkpoint, name, { onOffset, signal: both });
    } catch (error) {
      if (stop.signal.aborted && !signal.aborted)
        throw new Error("The upload was stopped. Choose the same files again to go on.");
      throw error;
    }
    done += file.size;
  }
  begun.drop((record) => record.checkpoint === checkpoint);
  onStored(checkpoint);
}

/** Say what half of each layer would make of it, and refuse damaged files before gigabytes are sent. */
async function costOf(taken) {
  try {
    const { totals } = await planOfHeaders(taken, FIRST_SPEC);
    return el(
      "p",
      {},
      `At half of each layer: ${count(totals.parameters_before)} → ` +
        `${count(totals.parameters_after)} parameters, ${bytes(totals.bytes_before)} → ${bytes(totals.bytes_after)}.`,
    );
  } catch (error) {
    // Shards that are missing may come later, and the spec is not yet what is wanted.
    if (FINAL.has(error.kind) && error.fault !== "missing-files") throw error;
    return null;
  }
}

function refused(left) {
  const pickles = left.some((name) => /\.(bin|pt|pth|ckpt|pkl)$/.test(name));
  const why = pickles ? " Pickled weights are never opened here; convert them to safetensors first." : "";
  return Object.assign(
    new Error(`There is no .safetensors file among ${left.length ? left.slice(0, 5).join(", ") : "them"}.${why}`),
    { title: "Nothing to store" },
  );
}

function leftOut(left) {
  if (left.length === 0) return null;
  return el(
    "p",
    { class: "small muted" },
    `${plural(left.length, "file")} not sent, since no checkpoint takes their type: ` +
      `${left.slice(0, 5).join(", ")}${left.length > 5 ? ", …" : ""}`,
  );
}

/** Find an id that is not taken, or that of a checkpoint which the same files were stored as. */
async function freeId(proposed, taken) {
  const stored = new Map(
    (await list("/v1/checkpoints", "checkpoints", { most: Infinity })).map((checkpoint) => [
      checkpoint.id,
      checkpoint.files,
    ]),
  );
  for (let i = 1; ; i += 1) {
    const id = i === 1 ? proposed : `${proposed}-${i}`;
    if (!stored.has(id)) return id;
    const sizes = new Map(stored.get(id).map((file) => [file.name, file.size_bytes]));
    // The service compares the bytes, and says so where they differ.
    if (sizes.size === taken.length && taken.every(({ file, name }) => sizes.get(name) === file.size)) return id;
  }
}
