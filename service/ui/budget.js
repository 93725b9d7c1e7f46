// What a budget would do, from the spectra of a report: an estimate, since it knows a part of each spectrum only.

import { sum } from "./layers.js";
import { energiesOf, likelySpectrumOf } from "./spectrum.js";

const HALVINGS = 60;

/**
 * Return the ranks, by layer, that spend the parameters of the layers' own ranks where they lower the sum of squared
 * relative
 * errors most; null unless all layers are factored by rank and have a spectrum.
 */
export function likelyRanks(layers) {
  const curves = layers.map(curveOf);
  if (!curves.length || curves.includes(null)) return null;
  const spent = (ranks) => sum(curves.map((curve, index) => curve.price * ranks[index]));
  const limit = spent(layers.map((layer) => layer.rank));
  const at = (least) => curves.map((curve) => rankAt(curve, least));
  // The gains of the last ranks are equal where a budget is spent best; find that gain by halving, on a log scale.
  let [low, high] = [1e-30, 1];
  for (let halving = 0; halving < HALVINGS; halving += 1) {
    const middle = Math.sqrt(low * high);
    if (spent(at(middle)) > limit) low = middle;
    else high = middle;
  }
  const ranks = at(high);
  return new Map(layers.map((layer, index) => [layer, ranks[index]]));
}

function curveOf(layer) {
  const points = likelySpectrumOf(layer);
  const total = points && energiesOf(points).at(-1);
  if (!layer.rank || !total || layer.shape?.length !== 2) return null;
  const price = layer.shape[0] + layer.shape[1];
  return { points, price, scale: total * price, most: layer.break_even_rank ?? points.at(-1)[0] };
}

/** Count the ranks whose gain for a parameter is at least `least`: those whose singular value is large enough. */
function rankAt({ points, scale, most }, least) {
  const value = Math.sqrt(least * scale);
  const at = points.findIndex((point) => point[1] < value);
  if (at === 0) return 1;
  if (at < 0) return Math.max(1, Math.min(points.at(-1)[0], most));
  const [[before, above], [after, below]] = [points[at - 1], points[at]];
  const rank = before + Math.floor(((above - value) / (above - below)) * (after - before));
  return Math.max(1, Math.min(rank, most));
}
