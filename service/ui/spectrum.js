// A layer's spectrum, and what a report does not have of it: many solvers compute only the values up to the rank.

import { optimumOf } from "./layers.js";

const TAIL_POINTS = 24;
const HALVINGS = 50;

/** The points of a layer's spectrum as `[index from 1, singular value]`; none where it has no spectrum. */
export function spectrumOf(layer) {
  const values = layer.singular_values ?? [];
  const indices = layer.singular_value_indices;
  return values.map((value, at) => [(indices ? indices[at] : at) + 1, value]);
}

/** The sums of squares up to each point of a spectrum, with straight lines between the points of the sample. */
export function energiesOf(points) {
  let total = 0;
  return points.map(([index, value], at) => {
    const [before, from] = at ? points[at - 1] : [0, value];
    const [count, rise] = [index - before, value - from];
    const squares = count * from * from + from * rise * (count + 1);
    total += squares + (rise * rise * (count + 1) * (2 * count + 1)) / (6 * count);
    return total;
  });
}

/**
 * The whole spectrum, as far as a report tells: beyond the rank it decays evenly, by the factor that gives the tail the
 * energy
 * which the best possible error, or the predicted loss, at the rank has. Null where neither is known.
 */
export function likelySpectrumOf(layer) {
  const points = spectrumOf(layer);
  const [last, value] = points.at(-1) ?? [0, 0];
  const missing = Math.min(...(layer.shape ?? [0])) - last;
  if (!value || missing <= 0) return points.length ? points : null;
  const energy = layer.rank === last ? tailEnergy(layer, points) : null;
  if (energy === null) return null;
  const decay = decayOf(energy / (value * value), missing);
  const steps = Array.from({ length: TAIL_POINTS }, (_, step) => Math.ceil((missing * (step + 1)) / TAIL_POINTS));
  const tail = [...new Set(steps)].map((step) => [last + step, value * Math.sqrt(decay ** step)]);
  return [...points, ...tail];
}

/** The energy beyond the rank: squared singular values are losses where both inputs and gradients weigh. */
function tailEnergy(layer, points) {
  const lost = optimumOf(layer);
  if (lost === null) return layer.predicted_loss ?? null;
  return lost < 1 ? (energiesOf(points).at(-1) * lost * lost) / (1 - lost * lost) : null;
}

/** Find the factor q from 0 to 1 for which q + q² + … has, over so many terms, this sum. */
function decayOf(wanted, terms) {
  let [low, high] = [0, 1];
  for (let halving = 0; halving < HALVINGS; halving += 1) {
    const middle = (low + high) / 2;
    const reached = (middle * (1 - middle ** terms)) / (1 - middle);
    if (reached < wanted) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}
