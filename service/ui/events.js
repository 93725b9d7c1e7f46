// The events of a job by fetch, since an EventSource sends no key.

import { get, jobPath, pause, send } from "./api.js";

const MOST_PAUSE_S = 15;

/** Yield `{name, job}` or `{name, progress}` until the job has ended; goes on after a break. */
export async function* follow(id, signal) {
  const known = { id: null };
  let waitS = 1;
  while (!signal.aborted) {
    try {
      const headers = { Accept: "text/event-stream", ...(known.id === null ? {} : { "Last-Event-ID": known.id }) };
      const answer = await send(jobPath(id, "/events"), { headers, signal });
      if (answer.status === 204) return;
      for await (const event of parsed(answer.body, known)) {
        waitS = 1;
        yield event;
        if (event.name === "end") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 429) yield* polled(id, signal);
      else if (error.status !== undefined && error.status < 500) throw error;
    }
    await pause(waitS, signal);
    waitS = Math.min(waitS * 2, MOST_PAUSE_S);
  }
}

/** Too many listen already: ask again whenever the state changes. */
async function* polled(id, signal) {
  for (let first = true; !signal.aborted; first = false) {
    const job = await get(jobPath(id, first ? "" : "?wait=2"), { signal });
    const ended = job.finished_at !== null;
    yield { name: ended ? "end" : "state", job };
    if (ended) return;
    yield { name: "progress", progress: job.progress };
  }
}

async function* parsed(body, known) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value.replaceAll("\r\n", "\n");
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const event = eventOf(block, known);
      if (event !== null) yield event;
    }
  }
}

function eventOf(block, known) {
  const fields = { event: "", data: "" };
  for (const line of block.split("\n")) {
    const [, name, value] = /^(\w+): ?(.*)$/.exec(line) ?? [];
    if (name === "id") known.id = value;
    else if (name in fields) fields[name] += value;
  }
  if (fields.data === "") return null;
  const data = JSON.parse(fields.data);
  return fields.event === "progress" ? { name: "progress", progress: data } : { name: fields.event, job: data };
}
