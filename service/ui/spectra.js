// What a size costs: from the singular values that the report of an earlier job has, else bounds that hold for any weight.

import { energiesOf, likelySpectrumOf } from "./spectrum.js";

const STEPS = 41;

/** What a layer loses at each rank, from what a report tells of its singular values. */
class Spectrum {
  constructor(points) {
    this.points = points;
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

/** Spectra by the names of layers, of reports whose errors are those that this spec would have. */
export function spectraOf(report) {
  const whole = report.layers.map((layer) => [layer.name, layer.shape.length === 2 ? likelySpectrumOf(layer) : null]);
  return new Map(whole.filter(([, points]) => points?.length > 1).map(([name, points]) => [name, new Spectrum(points)]));
}

/** Whether errors under one spec are errors under another: the same inputs and the same difference. */
export const alike = (one, other) => (one.calibration ?? null) === (other.calibration ?? null) && (one.base ?? null) === (other.base ?? null);

/** The share of the energy that any weight may lose at a rank: what is kept are the largest of its values. */
const worst = (layer, rank) => Math.max(0, 1 - rank / Math.min(...layer.shape));

const BY_SPECTRUM = new Set(["svd", "pivot", "cx", "cur"]);

/** The squared relative error of a planned layer as `[least, most]`; equal where the spectrum is known. */
export function errorBounds(layer, spectrum) {
  if (layer.outcome === "kept" || layer.shape_after) return layer.shape_after ? null : [0, 0];
  if (!BY_SPECTRUM.has(layer.method)) return null;
  const [least, most] = layer.rank === null ? [layer.rank_bounds?.least ?? 0, layer.rank_bounds?.most ?? 0] : [layer.rank, layer.rank];
  if (!spectrum) return [0, worst(layer, least)];
  return [spectrum.lost(most) / spectrum.total, spectrum.lost(least) / spectrum.total];
}

/** The relative error of a plan, over the layers that it factors: `{least, most}`, or null where nothing is known. */
export function planError(plan, spectra) {
  let [least, most, weight, all] = [0, 0, 0, true];
  for (const layer of plan.layers) {
    if (layer.outcome === "kept") continue;
    const spectrum = spectra.get(layer.name);
    const bounds = errorBounds(layer, spectrum);
    if (bounds === null || (spectra.size > 0 && !spectrum)) all = false;
    if (bounds === null || (spectra.size > 0 && !spectrum)) continue;
    const energy = spectrum?.total ?? 1;
    least += bounds[0] * energy;
    most += bounds[1] * energy;
    weight += energy;
  }
  if (weight === 0 || !all) return null;
  return { least: Math.sqrt(least / weight), most: Math.sqrt(most / weight), known: spectra.size > 0 };
}

/**
 * Curves of error against the parameters of the whole checkpoint.
 *
 * `layers` are those of a plan, `fixed` the parameters of all other tensors. Two factors are counted for each layer.
 */
export function curves(layers, fixed, spectra) {
  const weights = layers.filter((layer) => layer.shape.length === 2 && !layer.reason?.startsWith("more") && (spectra.size === 0 || spectra.has(layer.name)));
  const own = fixed + layers.reduce((total, layer) => total + layer.parameters_before, 0) - weights.reduce((total, layer) => total + layer.parameters_before, 0);
  if (weights.length === 0) return [];
  const shares = Array.from({ length: STEPS }, (_, i) => 0.02 + (0.98 * i) / (STEPS - 1));
  const alikeLayers = merged(weights, spectra);
  const even = shares.map((share) => point(alikeLayers, own, (each) => rankOfShare(each, share)));
  if (spectra.size === 0) return [{ name: "the error is at most", points: even }];
  const energy = alikeLayers.reduce((total, layer) => total + layer.spectrum.total, 0);
  const levels = Array.from({ length: STEPS }, (_, i) => energy * 10 ** (-4 - (7 * i) / (STEPS - 1)));
  const spent = levels.map((level) => point(alikeLayers, own, (each) => rankOfLevel(each, level)));
  return [{ name: "the same share of each", points: even }, { name: "shared out", points: spent }];
}

/** Layers of one shape count once where no spectrum tells them apart. */
function merged(layers, spectra) {
  const found = new Map();
  for (const layer of layers) {
    const spectrum = spectra.get(layer.name) ?? null;
    const id = spectrum === null ? layer.shape.join("×") : layer.name;
    const before = found.get(id);
    if (before) before.count += 1;
    else found.set(id, { shape: layer.shape, size: layer.shape[0] * layer.shape[1], sides: layer.shape[0] + layer.shape[1], spectrum, count: 1 });
  }
  return [...found.values()];
}

function rankOfShare(layer, share) {
  const rank = Math.floor((share * layer.size) / layer.sides);
  return rank * layer.sides >= layer.size ? null : Math.max(1, rank);
}

function rankOfLevel(layer, level) {
  const rank = layer.spectrum.rankFor(level * layer.sides);
  return rank * layer.sides >= layer.size ? null : Math.max(1, rank);
}

function point(layers, fixed, rankOf) {
  let [parameters, lost, energy] = [fixed, 0, 0];
  for (const layer of layers) {
    const rank = rankOf(layer);
    parameters += layer.count * (rank === null ? layer.size : rank * layer.sides);
    const total = layer.spectrum?.total ?? layer.size;
    energy += layer.count * total;
    if (rank !== null) lost += layer.count * (layer.spectrum?.lost(rank) ?? worst(layer, rank) * total);
  }
  return [parameters, Math.sqrt(lost / energy)];
}
