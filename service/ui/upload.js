// Resumable uploads by tus 1.0: what is on the way is remembered, so that it goes on after a reload.

import { Problem, ROOT, pause, send, withKey } from "./api.js";

const KEPT = "eckart.uploads";
const TUS = { "Tus-Resumable": "1.0.0" };
const PIECE_BYTES = 16 * 2 ** 20;
const MOST_FAILURES = 8;

/** The uploads that were begun here and are not part of a finished checkpoint: what is needed to go on. */
export const begun = {
  all() {
    try {
      return JSON.parse(localStorage.getItem(KEPT) ?? "[]");
    } catch {
      return [];
    }
  },
  of: (file) =>
    begun
      .all()
      .find(
        (record) => record.name === file.name && record.size === file.size && record.modified === file.lastModified,
      ),
  put(record) {
    const others = begun.all().filter((other) => other.url !== record.url);
    localStorage.setItem(KEPT, JSON.stringify([...others, record]));
  },
  drop(test) {
    localStorage.setItem(KEPT, JSON.stringify(begun.all().filter((record) => !test(record))));
  },
};

/** Send a file to a checkpoint, from where an earlier upload stopped; `onOffset(bytes)` tells how far it is. */
export async function upload(file, checkpoint, name, { onOffset, signal }) {
  let failures = 0;
  for (;;) {
    try {
      await attempt(
        file,
        checkpoint,
        name,
        (offset) => {
          failures = 0;
          onOffset(offset);
        },
        signal,
      );
      return;
    } catch (error) {
      signal.throwIfAborted();
      failures += 1;
      if (isFinal(error) || failures > MOST_FAILURES) throw error;
      await pause(error.retryAfter ?? Math.min(2 ** failures / 4, 15), signal);
      signal.throwIfAborted();
    }
  }
}

/** A refusal stays one; a broken line, a full service and an offset that another request moved do not. */
function isFinal(error) {
  return (
    (error instanceof Problem && error.status < 500 && ![408, 409, 423, 429].includes(error.status)) ||
    error.kind === "content-conflict"
  );
}

async function attempt(file, checkpoint, name, onOffset, signal) {
  let record = begun.of(file);
  if (record?.checkpoint !== checkpoint || record.filename !== name) record = undefined;
  let offset = record === undefined ? null : await offsetOf(record, signal);
  if (offset === null) {
    record = await begin(file, checkpoint, name, signal);
    offset = 0;
  }
  onOffset(offset);
  while (offset < file.size) {
    offset = await sendPiece(record.url, file, offset, onOffset, signal);
    begun.put({ ...record, offset });
    onOffset(offset);
  }
}

async function begin(file, checkpoint, name, signal) {
  const coded = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));
  const headers = {
    ...TUS,
    "Upload-Length": String(file.size),
    "Upload-Metadata": `checkpoint ${coded(checkpoint)},filename ${coded(name)}`,
  };
  const answer = await send("/v1/uploads", { method: "POST", headers, signal });
  const record = {
    url: answer.headers.get("Location"),
    checkpoint,
    filename: name,
    name: file.name,
    size: file.size,
    modified: file.lastModified,
    offset: 0,
  };
  // An older one of the same file is of no use any more.
  begun.drop((other) => other.name === file.name && other.size === file.size && other.checkpoint === checkpoint);
  begun.put(record);
  return record;
}

/** Ask how far an upload is; null where the service does not know it any more. */
async function offsetOf(record, signal) {
  try {
    const answer = await send(record.url.slice(ROOT.length), { method: "HEAD", headers: TUS, signal });
    return Number(answer.headers.get("Upload-Offset"));
  } catch (error) {
    if (error.status !== 404) throw error;
    begun.drop((other) => other.url === record.url);
    return null;
  }
}

/** Send the next piece. Only XMLHttpRequest tells how far a body is. */
function sendPiece(url, file, offset, onOffset, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const abort = () => request.abort();
    signal.addEventListener("abort", abort, { once: true });
    request.open("PATCH", url);
    const headers = withKey({
      ...TUS,
      "Upload-Offset": String(offset),
      "Content-Type": "application/offset+octet-stream",
    });
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onOffset(offset + event.loaded);
    request.onloadend = () => {
      signal.removeEventListener("abort", abort);
      if (request.status === 204) resolve(Number(request.getResponseHeader("Upload-Offset")));
      else reject(request.status === 0 ? new Error("The line broke while the file was being sent.") : refusal(request));
    };
    request.send(file.slice(offset, offset + PIECE_BYTES));
  });
}

function refusal(request) {
  let document = {};
  try {
    document = JSON.parse(request.responseText);
  } catch {
    // Not from the service itself.
  }
  return new Problem(request.status, document, Number(request.getResponseHeader("Retry-After")) || null);
}

/** Give an upload up: the service forgets what has arrived. */
export async function giveUp(record) {
  try {
    await send(record.url.slice(ROOT.length), { method: "DELETE", headers: TUS });
  } catch (error) {
    if (error.status !== 404) throw error;
  }
  begun.drop((other) => other.url === record.url);
}
