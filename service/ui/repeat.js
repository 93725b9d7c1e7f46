// How a report's job is repeated: lines for a shell and for Python, in which every name is quoted.

const SAFE_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]*$/;
const LOCAL = "http://127.0.0.1:8000";

/** The service that sent the page, below the path of its proxy; or the usual address where the page is a file. */
function host() {
  if (!location.protocol.startsWith("http")) return LOCAL;
  const root =
    document.body.dataset.root ?? /^((?:\/[A-Za-z0-9._~-]+)*)\/v1\/jobs\//.exec(location.pathname)?.[1] ?? "";
  return location.origin + root;
}

/** Quote a word for a POSIX shell. */
export const shellQuoted = (word) => `'${word.replaceAll("'", "'\\''")}'`;

/** Write a JSON value as a literal of Python; JSON's strings are literals of Python too. */
export function pythonLiteral(value, indent = 0) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = " ".repeat(indent + 4);
  const isList = Array.isArray(value);
  const items = isList
    ? value.map((item) => pythonLiteral(item, indent + 4))
    : Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${pythonLiteral(item, indent + 4)}`);
  const [open, close] = isList ? "[]" : "{}";
  const line = `${open}${items.join(", ")}${close}`;
  if (line.length < 90 - indent && !line.includes("\n")) return line;
  return `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${" ".repeat(indent)}${close}`;
}

/** The names of the input's weight files and index, as far as they are names that the service takes. */
function inputNames(report) {
  const names = (report.input?.files ?? []).map((file) => String(file.name));
  return names.filter((name) => SAFE_NAME.test(name));
}

/** One file alone, or a folder: without its other files a model gives another result. */
function source(report) {
  const names = inputNames(report);
  return names.length === 1 ? names[0] : "path/to/model";
}

/** References are ids of stored files: on another service they have to be stored first. */
function references(report, mark) {
  return ["calibration", "base"]
    .filter((field) => report.spec?.[field])
    .map((field) => `${mark} Needs the stored ${field} ${JSON.stringify(report.spec[field])}.\n`)
    .join("");
}

export function curlLines(report) {
  const names = inputNames(report);
  const files = (names.length ? names : ["model.safetensors"])
    .map((name) => `    -F checkpoint=@${name} \\\n`)
    .join("");
  const spec = `    --form-string spec=${shellQuoted(JSON.stringify(report.spec ?? {}))}\n`;
  const key = '    -H "Authorization: Bearer $ECKART_API_KEY" \\\n';
  return `${references(report, "#")}curl ${host()}/v1/jobs \\\n${key}${files}${spec}`;
}

export function pythonLines(report) {
  return `${references(report, "#")}from eckart import Client

spec = ${pythonLiteral(report.spec ?? {})}
with Client(${JSON.stringify(host())}) as client:
    job = client.compress(${JSON.stringify(source(report))}, spec)
    client.download(job.id, "compressed")
`;
}
