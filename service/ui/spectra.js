// What a size costs: from the singular values that the report of an earlier job has, else bounds that hold for any
// weight.

import { formsOf, isOptimal } from "./forms.js";
import { energiesOf, likelySpectrumOf } from "./spectrum.js";

/** What a layer loses at each rank, from what a report tells of its singular values. */
class Spectrum {
  /** `isLoss`: squared singular values are shares of the predicted loss, since inputs and gradients are known. */
  constructor(points, isLoss) {
    this.points = points;
    this.isLoss = isLoss;
    this.energies = energiesOf(points);
    this.total = this.energies.at(-1);
  }

  /** The energy that is lost at a rank. */
  lost(rank) {
    const at = this.#first(([index]) => index >= rank);
    if (rank <= 0) return this.total;
    if (at === this.points.length) return 0;
    const [from, before] = at > 0 ? [this.points[at - 1][0], this.energies[at - 1]] : [0, 0];
    const kept = before + ((this.energies[at] - before) * (rank - from)) / (this.points[at][0] - from);
    return Math.max(0, this.total - kept);
  }

  /** The largest rank whose last value still brings at least this energy. */
  rankFor(least) {
    const at = this.#first(([, value]) => value * value < least);
    return at === 0 ? 1 : this.points[at - 1][0];
  }

  /** The first point for which a test holds that holds for all behind it. */
  #first(test) {
    let [low, high] = [0, this.points.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (test(this.points[middle])) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

/**
 * Spectra by the names of layers, of a report whose errors are those that a spec would have.
 *
 * Where some tell the predicted loss, they are those that count: the others are in units that cannot be added to it.
 */
export function spectraOf(report) {
  const found = new Map();
  for (const layer of report.layers) {
    const points = layer.shape.length === 2 ? likelySpectrumOf(layer) : null;
    const isLoss = layer.predicted_loss != null && isOptimal(formsOf(layer));
    if (points?.length > 1) found.set(layer.name, new Spectrum(points, isLoss));
  }
  if (![...found.values()].some((spectrum) => spectrum.isLoss)) return found;
  return new Map([...found].filter(([, spectrum]) => spectrum.isLoss));
}

/** Whether these spectra tell the predicted loss. */
export const tellLoss = (spectra) => spectra.values().next().value?.isLoss ?? false;

/** Whether errors under one spec are errors under another: the same inputs and the same difference. */
export const alike = (one, other) =>
  (one.calibration ?? null) === (other.calibration ?? null) && (one.base ?? null) === (other.base ?? null);

/** The share of the energy that any weight may lose at a rank: what is kept are the largest of its values. */
export const worst = (shape, rank) => Math.max(0, 1 - rank / Math.min(...shape));

const ranksOf = ({ rank, rank_bounds: bounds }) =>
  rank === null ? [bounds?.least ?? 0, bounds?.most ?? 0] : [rank, rank];

/**
 * The share of its energy that a planned layer loses, as `[least, most]`; equal where the spectrum is known.
 *
 * Null where nothing can be said: of what is rounded, and of chosen columns and rows without a spectrum.
 */
export function lostShares(layer, spectrum) {
  if (layer.shape_after) return null;
  if (layer.outcome === "kept") return [0, 0];
  const forms = formsOf(layer);
  if (forms.length === 0 || layer.method.includes("int")) return null;
  const [least, most] = ranksOf(layer);
  if (spectrum) return [spectrum.lost(most) / spectrum.total, spectrum.lost(least) / spectrum.total];
  return isOptimal(forms) ? [0, worst(layer.shape, least)] : null;
}

/**
 * What a plan costs over the layers that it replaces: `{least, most, known, isLoss, floor}`, or null where nothing is
 * known.
 *
 * `floor`: chosen columns and rows lose more than the spectrum tells.
 */
export function planCost(plan, spectra) {
  const isLoss = tellLoss(spectra);
  let [least, most, weight, floor] = [0, 0, 0, false];
  for (const layer of plan.layers) {
    if (layer.outcome === "kept") continue;
    const spectrum = spectra.get(layer.name);
    // Layers without gradients have no loss, neither here nor in the report.
    if (isLoss && !spectrum) continue;
    const bounds = lostShares(layer, spectrum);
    if (bounds === null || (spectra.size > 0 && !spectrum)) return null;
    const energy = spectrum?.total ?? 1;
    least += bounds[0] * energy;
    most += bounds[1] * energy;
    weight += energy;
    floor ||= !isOptimal(formsOf(layer));
  }
  if (weight === 0) return null;
  const shown = isLoss ? (energy) => energy : (energy) => Math.sqrt(energy / weight);
  return { least: shown(least), most: shown(most), known: spectra.size > 0, isLoss, floor };
}
