// The lines that run a result, and those that make it again.

import { ROOT, jobPath, send } from "./api.js";
import { pythonLiteral, shellQuoted } from "./repeat.js";

const HOW_TO_RUN = /<!-- eckart: how to run it -->[\s\S]*?```python\n([\s\S]*?)```/;
const SERVICE = () => location.origin + ROOT;

/** The lines that run a result. Its model card has them where the result is a folder. */
export async function linesToRun(job, report) {
  const names = report.output.files.map((file) => file.name);
  const folder = `${job.checkpoint}-compressed`;
  if (names.includes("README.md") && names.includes("config.json")) {
    const card = await (await send(jobPath(job.id, "/files/README.md"))).text();
    const lines = HOW_TO_RUN.exec(card)?.[1].trimEnd();
    if (lines) return { lines: lines.replaceAll('"."', quoted(folder)), folder, name: null };
  }
  if (job.spec.layout === "adapter") {
    return { lines: ["from peft import PeftModel", "", `model = PeftModel.from_pretrained(base_model, ${quoted(folder)})`].join("\n"), folder, name: null };
  }
  const weights = names.find((name) => name.endsWith(".safetensors.index.json")) ?? names.find((name) => name.endsWith(".safetensors"));
  if (job.spec.layout === "dense") {
    return { lines: ["from safetensors.torch import load_model", "", `load_model(model, ${quoted(weights)})`].join("\n"), folder, name: weights };
  }
  return { lines: ["from eckart.torch import load_compressed", "", `load_compressed(model, ${quoted(weights)})`].join("\n"), folder, name: weights };
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
    `until code=$(curl -fs${key} -o result.tar -w '%{http_code}' "$job/archive?wait=30") || [ $code != 409 ]; do sleep 1; done`,
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
