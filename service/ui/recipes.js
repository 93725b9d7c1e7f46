// The lines that run a result, and those that make it again.

import { ROOT, jobPath, send } from "./api.js";
import { pythonLiteral, shellQuoted } from "./repeat.js";

const HOW_TO_RUN = /<!-- eckart: how to run it -->[\s\S]*?```python\n([\s\S]*?)```/;
const SUBFOLDER = /^[A-Za-z0-9][A-Za-z0-9._-]*$/;
const PACKAGES = { "eckart.transformers": "eckart[transformers]", "eckart.torch": "eckart[torch]" };
const SERVICE = () => location.origin + ROOT;

/**
 * The lines that run a result: `{lines, folder, name, subfolders}`.
 *
 * They take a `folder` of all files, whose model card has them, or the one file `name`. `subfolders` of the model's own
 * folder were not sent, and the lines need them.
 */
export async function linesToRun(job, report) {
  const names = report.output.files.map((file) => file.name);
  const read = async (name) => (await send(jobPath(job.id, `/files/${name}`))).text();
  const folder = `${job.checkpoint}-compressed`;
  const taken = { folder, name: null, subfolders: [] };
  if (names.includes("README.md") && names.includes("config.json")) {
    const lines = HOW_TO_RUN.exec(await read("README.md"))?.[1].trimEnd();
    const parts = lines?.includes("sentence_transformers") && names.includes("modules.json");
    const subfolders = parts ? subfoldersOf(await read("modules.json")) : [];
    if (lines) return { ...taken, lines: lines.replaceAll('"."', quoted(folder)), subfolders };
  }
  if (job.spec.layout === "adapter") {
    const call = `model = PeftModel.from_pretrained(base_model, ${quoted(folder)})`;
    return { ...taken, lines: ["from peft import PeftModel", "", call].join("\n") };
  }
  const index = names.find((name) => name.endsWith(".safetensors.index.json"));
  const name = index ?? names.find((each) => each.endsWith(".safetensors"));
  const dense = job.spec.layout === "dense";
  const [from, load] = dense ? ["safetensors.torch", "load_model"] : ["eckart.torch", "load_compressed"];
  return { ...taken, name, lines: [`from ${from} import ${load}`, "", `${load}(model, ${quoted(name)})`].join("\n") };
}

/** The folders of the parts of a sentence transformer that have files. */
function subfoldersOf(text) {
  try {
    const parts = JSON.parse(text).filter(({ path, type }) => SUBFOLDER.test(path) && !type.endsWith(".Normalize"));
    return parts.map(({ path }) => path);
  } catch {
    return [];
  }
}

/** What must be installed, or there, for these lines. */
export function needsOf(lines) {
  const imported = [...lines.matchAll(/^(?:from|import) ([\w.]+)/gm)].map(
    ([, name]) => PACKAGES[name] ?? name.split(".")[0],
  );
  const packages = [...new Set(imported)].map((name) => name.replaceAll("_", "-")).join(" and ");
  if (lines.includes("base_model")) return `${packages}, and the base_model that was fine-tuned`;
  return lines.includes("(model,") ? `${packages}, and the model that the checkpoint is of` : packages;
}

/** What repeats a job with curl. */
export function byCurl(job, spec, keyed) {
  const document = JSON.stringify({ checkpoint: job.checkpoint, spec });
  const key = keyed ? ` -H "Authorization: Bearer $ECKART_API_KEY"` : "";
  return [
    `location=$(curl -sS -o /dev/null -D - ${SERVICE()}/v1/jobs${key} \\`,
    `    -H 'Content-Type: application/json' -d ${shellQuoted(document)} \\`,
    "    | tr -d '\\r' | sed -n 's/^[Ll]ocation: //p')",
    `job=${location.origin}$location`,
    `until code=$(curl -fs${key} -o result.tar -w '%{http_code}' ` +
      `"$job/archive?wait=30") || [ $code != 409 ]; do sleep 1; done`,
    "mkdir -p result && tar x -C result < result.tar",
  ].join("\n");
}

/** What repeats a job with the Python client. */
export function byPython(job, spec, keyed) {
  return [
    ...(keyed ? ["import os", ""] : []),
    "from eckart import Client",
    "",
    `with Client(${quoted(SERVICE())}${keyed ? ', api_key=os.environ["ECKART_API_KEY"]' : ""}) as client:`,
    `    job = client.submit(${quoted(job.checkpoint)}, ${pythonLiteral(spec, 4)})`,
    "    client.wait(job.id)",
    `    client.download(job.id, ${quoted(`${job.checkpoint}-compressed`)})`,
  ].join("\n");
}

const quoted = (text) => JSON.stringify(text);
