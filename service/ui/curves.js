// Curves of what a size costs, over the parameters of the whole checkpoint.

import { formsOf, isOptimal, numbersOf, rankFor } from "./forms.js";
import { tellLoss, worst } from "./spectra.js";

const STEPS = 41;
const SHARES = Array.from({ length: STEPS }, (_, i) => 0.02 + (0.98 * i) / (STEPS - 1));

/**
 * The curves for the layers of a plan, in the forms that it has for them; `fixed` are the parameters of all other
 * tensors.
 *
 * Returns `{lines, without}`: `without` counts the layers that have no curve, such as those to be rounded.
 */
export function curves(layers, fixed, spectra, storage = "three") {
  const drawn = layers.filter((layer) => hasCurve(layer, spectra, storage));
  const without = layers.length - drawn.length;
  if (drawn.length === 0) return { lines: [], without };
  const inCurve = new Set(drawn);
  const own = layers.reduce((total, layer) => total + (inCurve.has(layer) ? 0 : layer.parameters_before), fixed);
  const each = merged(drawn, spectra, storage);
  const isLoss = tellLoss(spectra);
  const even = SHARES.map((share) => point(each, own, isLoss, (layer) => rankOfShare(layer, share)));
  if (spectra.size === 0) return { lines: [{ name: "the error is at most", points: even }], without };
  const more = each.every(({ forms }) => isOptimal(forms)) ? "" : ", at least";
  const energy = each.reduce((total, layer) => total + layer.spectrum.total, 0);
  const levels = Array.from({ length: STEPS }, (_, i) => energy * 10 ** (-4 - (7 * i) / (STEPS - 1)));
  const spent = levels.map((level) => point(each, own, isLoss, (layer) => rankOfLevel(layer, level)));
  return {
    lines: [
      { name: `the same share of each${more}`, points: even },
      { name: `shared out${more}`, points: spent },
    ],
    without,
  };
}

function hasCurve(layer, spectra, storage) {
  const forms = formsOf(layer, storage);
  if (layer.shape.length !== 2 || forms.length === 0 || layer.reason?.startsWith("more")) return false;
  return spectra.size > 0 ? spectra.has(layer.name) : isOptimal(forms);
}

/** Layers of one shape and form count once where no spectrum tells them apart. */
function merged(layers, spectra, storage) {
  const found = new Map();
  for (const { name, shape, method } of layers) {
    const spectrum = spectra.get(name) ?? null;
    const id = spectrum === null ? `${shape.join("×")} ${method}` : name;
    const before = found.get(id);
    if (before) before.count += 1;
    else found.set(id, { shape, forms: formsOf({ method }, storage), size: shape[0] * shape[1], spectrum, count: 1 });
  }
  return [...found.values()];
}

/** The rank, or null where the weight stays dense since factors would save nothing. */
const saving = (layer, rank) => (numbersOf(layer.forms, layer.shape, rank) >= layer.size ? null : Math.max(1, rank));

const rankOfShare = (layer, share) => saving(layer, rankFor(layer.forms, layer.shape, Math.floor(share * layer.size)));

const rankOfLevel = (layer, level) => saving(layer, layer.spectrum.rankFor(level * (layer.shape[0] + layer.shape[1])));

function point(layers, fixed, isLoss, rankOf) {
  let [parameters, lost, energy] = [fixed, 0, 0];
  for (const layer of layers) {
    const rank = rankOf(layer);
    parameters += layer.count * (rank === null ? layer.size : numbersOf(layer.forms, layer.shape, rank));
    const total = layer.spectrum?.total ?? layer.size;
    energy += layer.count * total;
    if (rank !== null) lost += layer.count * (layer.spectrum?.lost(rank) ?? worst(layer.shape, rank) * total);
  }
  return [parameters, isLoss ? lost : Math.sqrt(lost / energy)];
}
