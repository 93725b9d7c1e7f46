// Requests to the service: with the key where one is needed, and with problems as errors.

export const ROOT = document.body.dataset.root ?? "";
const KEY = "eckart.key";
const PAGE = 200;
const MOST_SEEN = 5000;

/** A problem document (RFC 9457) as an error: `message` says what to do, `fields` which fields are bad. */
export class Problem extends Error {
  constructor(status, document = {}, retryAfter = null) {
    super(document.detail ?? `The service answered ${status}.`);
    this.status = status;
    this.title = document.title ?? "The request failed";
    [this.kind = "", this.fault = ""] = (document.type ?? "").split(":").slice(3);
    this.fields = document.errors ?? [];
    this.retryAfter = retryAfter;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (secret) => sessionStorage.setItem(KEY, secret),
  forget: () => sessionStorage.removeItem(KEY),
};

// Set by the frame: asks the user, and resolves to a key, or to null where none is given.
let askForKey = async () => null;
let asking = null;

export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** Ask once, however many requests were refused at a time. */
function newKey() {
  asking ??= askForKey().finally(() => {
    asking = null;
  });
  return asking;
}

export function withKey(headers = {}) {
  const secret = key.get();
  return secret === null ? headers : { ...headers, Authorization: `Bearer ${secret}` };
}

/** Send a request; a 401 asks for a key and sends it again. */
export async function send(path, { headers = {}, ...options } = {}) {
  for (;;) {
    const used = key.get();
    const answer = await fetch(ROOT + path, { ...options, headers: withKey(headers) });
    if (answer.ok || answer.status === 304) return answer;
    const problem = await problemOf(answer);
    if (answer.status !== 401) throw problem;
    // Another request may have got a key meanwhile.
    if (key.get() === used && (await newKey()) === null) throw problem;
  }
}

export async function problemOf(answer) {
  let document = {};
  try {
    document = await answer.json();
  } catch {
    // Not from the service itself, but from a proxy before it.
  }
  const pause = Number(answer.headers.get("Retry-After"));
  return new Problem(answer.status, document, Number.isFinite(pause) && pause > 0 ? pause : null);
}

export async function get(path, options) {
  return (await send(path, options)).json();
}

export async function post(path, document, options = {}) {
  const body = document === undefined ? undefined : JSON.stringify(document);
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  return (await send(path, { method: "POST", body, headers, ...options })).json();
}

export const remove = (path) => send(path, { method: "DELETE" });

const segment = encodeURIComponent;
export const jobPath = (id, rest = "") => `/v1/jobs/${segment(id)}${rest}`;
export const checkpointPath = (id) => `/v1/checkpoints/${segment(id)}`;

/**
 * Collect the entries of a list that `fits`, at most `most` of them, page by page; no more than `MOST_SEEN` are looked
 * at.
 */
export async function list(path, field, { most = 200, fits = () => true, ...parameters } = {}) {
  const found = [];
  let [cursor, seen] = [null, 0];
  do {
    const query = new URLSearchParams({ limit: String(PAGE) });
    for (const [name, value] of Object.entries({ ...parameters, cursor })) if (value) query.set(name, value);
    const page = await get(`${path}?${query}`);
    found.push(...page[field].filter(fits));
    seen += page[field].length;
    cursor = page.next_cursor;
  } while (cursor && found.length < most && seen < MOST_SEEN);
  return found.slice(0, most);
}

/** Run work for each item, a few at a time: plans and documents of checkpoints take turns in the service. */
export async function each(items, work, { atOnce = 4 } = {}) {
  const results = new Array(items.length);
  let next = 0;
  const run = async () => {
    for (let i = next++; i < items.length; i = next++) results[i] = await work(items[i]);
  };
  await Promise.all(Array.from({ length: Math.min(atOnce, items.length) }, run));
  return results;
}

export const pause = (s, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, s * 1000);
    signal?.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
