// What was dropped or chosen: which files a checkpoint takes, and under which names.

const WEIGHTS = /\.safetensors$/;
const INDEX = /\.safetensors\.index(\.[A-Za-z0-9_-]+)?\.json$/;
const COMPANION = /\.(json|txt|model|md|jinja)$/;
const NOT_TAKEN = /^report\.json$/;

/** Make a name legal as the service does for forms: without accents, other signs as hyphens. */
export function legalName(name) {
  const ending = /\.[^.]*$/.exec(name)?.[0] ?? "";
  const lower = name.slice(0, name.length - ending.length) + ending.toLowerCase();
  const plain = lower.normalize("NFD").replace(/\p{M}/gu, "");
  return plain
    .replace(/[^A-Za-z0-9._-]+/g, "-")
    .replace(/-+(?=\.)/g, "")
    .replace(/^[^A-Za-z0-9]+/, "")
    .slice(-128);
}

/** Propose the id of a checkpoint: the folder's name, or that of the only weight file. */
export function proposedId(folder, files) {
  const weights = files.filter((file) => WEIGHTS.test(file.name));
  const from = folder || (weights[0]?.name ?? "checkpoint").replace(/(-\d+-of-\d+)?\.safetensors$/, "");
  return legalName(from).slice(0, 100) || "checkpoint";
}

/** Sort files into those that are sent, weights last, and those that no checkpoint takes. */
export function sorted(files) {
  const named = files.map((file) => ({ file, name: legalName(file.name) }));
  const rank = ({ name }) =>
    INDEX.test(name) ? 0 : WEIGHTS.test(name) ? 2 : COMPANION.test(name) && !NOT_TAKEN.test(name) ? 1 : -1;
  const taken = named
    .filter((entry) => rank(entry) >= 0)
    .sort((a, b) => rank(a) - rank(b) || a.name.localeCompare(b.name));
  return {
    taken,
    left: named.filter((entry) => rank(entry) < 0).map((entry) => entry.file.name),
    weights: taken.some((entry) => rank(entry) === 2),
  };
}

/** Read what was dropped: files, or one folder, whose subfolders stay behind. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const folder = entries.find((entry) => entry.isDirectory);
  if (!folder) return { folder: "", files: [...transfer.files] };
  const inside = await children(folder);
  const files = await Promise.all(
    inside
      .filter((entry) => entry.isFile)
      .map((entry) => new Promise((resolve, reject) => entry.file(resolve, reject))),
  );
  return { folder: folder.name, files };
}

async function children(folder) {
  const reader = folder.createReader();
  const found = [];
  for (;;) {
    // A reader gives a hundred at a time.
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) return found;
    found.push(...some);
  }
}

/** Read what a folder input holds: its own files, without those of subfolders. */
export function chosen(input) {
  const files = [...input.files];
  const folder = files[0]?.webkitRelativePath?.split("/")[0] ?? "";
  return { folder, files: folder ? files.filter((file) => file.webkitRelativePath.split("/").length === 2) : files };
}
