// What a report means, in words. Each rule says what it looks at, from which threshold it speaks, and one sentence.
// docs/4-format.md has the table of the rules; a test compares the two.

import { digits } from "./chart-parts.js";
import { likelyRanks } from "./budget.js";
import { byKind, errorOf, grouped, isFactored, meanError, median, sum } from "./layers.js";
import { REASONS } from "./reasons.js";
import { energiesOf, likelySpectrumOf } from "./spectrum.js";

const NAMES_SHOWN = 3;
const FEW_LAYERS = 4;

const percent = (share) => `${Number((100 * share).toPrecision(2))} %`;
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const have = (count) => (count === 1 ? "has" : "have");
const factored = (report) => report.layers.filter(isFactored);
const isCalibrated = (report) => report.layers.some((layer) => layer.weighted_error != null);

function listed(names) {
  const more = names.length - NAMES_SHOWN;
  return names.slice(0, NAMES_SHOWN).join(", ") + (more > 0 ? ` and ${more} more` : "");
}

const savedBytes = ({ totals }) => 1 - totals.bytes_after / Math.max(1, totals.bytes_before);
const errorOverAll = ({ totals }) => totals.weighted_error ?? totals.relative_error;

/** The rules, in the order in which they are told. `tone` is good, warn or bad. */
export const DIAGNOSES = [
  {
    name: "not_smaller",
    threshold: 0.01,
    tone: "bad",
    say(report, threshold) {
      const saved = savedBytes(report);
      if (saved >= threshold) return null;
      const what = saved < 0 ? "is larger than the input" : `is only ${percent(Math.max(0, saved))} smaller`;
      return `The result ${what}. Ask for smaller ranks, or for int8 or int4.`;
    },
  },
  {
    name: "nearly_lossless",
    threshold: 0.02,
    tone: "good",
    say(report, threshold) {
      const error = errorOverAll(report);
      if (!factored(report).length || error == null || error > threshold) return null;
      return `The result is close to the input: the error over all layers is ${digits(error)}.`;
    },
  },
  {
    name: "large_error",
    threshold: 0.5,
    tone: "bad",
    say(report, threshold) {
      const error = errorOverAll(report);
      if (!factored(report).length || error == null || error < threshold) return null;
      const next = isCalibrated(report)
        ? "Expect a worse model: test it before use, keep more, or train it further."
        : "Expect a worse model: keep more, or calibrate, so that the error is small where the inputs are.";
      return (
        `The error over all layers is ${digits(error)}: of the weights' energy, ` +
        `${percent(error * error)} is lost. ${next}`
      );
    },
  },
  {
    name: "kind_loses_most",
    threshold: 1.25,
    tone: "warn",
    say(report, threshold) {
      const kinds = [...byKind(factored(report))].map(([kind, layers]) => [kind, meanError(layers), layers]);
      const over = meanError(factored(report));
      const [kind, error, layers] = kinds.reduce((a, b) => (b[1] > a[1] ? b : a), ["", -1, []]);
      if (kinds.length < 2 || !over || error < threshold * over) return null;
      const told =
        `The weights of ${kind} lose most: an error of ${digits(error)}, ` + `and ${digits(over)} over all layers.`;
      return `${told}${budgetAdvice(report, layers)}`;
    },
  },
  {
    name: "depth",
    threshold: 1.25,
    tone: "warn",
    say(report, threshold) {
      const layers = factored(report);
      const quarter = Math.floor(layers.length / 4);
      if (quarter < FEW_LAYERS) return null;
      const [first, last] = [meanError(layers.slice(0, quarter)), meanError(layers.slice(-quarter))];
      if (!first || !last || Math.max(first / last, last / first) < threshold) return null;
      const [worse, other] = last > first ? ["last", "first"] : ["first", "last"];
      const errors = `${digits(Math.max(first, last))} and ${digits(Math.min(first, last))}`;
      return `The ${worse} quarter of the layers loses more than the ${other}: ${errors}.`;
    },
  },
  {
    name: "outliers",
    threshold: 2,
    tone: "warn",
    say(report, threshold) {
      const layers = factored(report).filter((layer) => errorOf(layer) !== null);
      const middle = median(layers.map(errorOf));
      const far = layers.filter((layer) => errorOf(layer) > threshold * middle);
      if (layers.length < FEW_LAYERS || !middle || !far.length || far.length > layers.length / 10 + 1) return null;
      far.sort((a, b) => errorOf(b) - errorOf(a));
      const names = listed(far.map((layer) => layer.name));
      return (
        `${plural(far.length, "layer")} ${have(far.length)} more than ${threshold} times ` +
        `the usual error: ${names}. An override can spare them.`
      );
    },
  },
  {
    name: "far_from_optimum",
    threshold: 1.2,
    tone: "warn",
    say({ totals }, threshold) {
      const times = totals.error_over_optimal;
      if (times == null || times < threshold) return null;
      return (
        `The errors are ${digits(times)} times the best possible ones at these ranks. svd ` +
        "reaches the optimum, and pivot stores the same at fewer parameters."
      );
    },
  },
  {
    name: "flat_spectra",
    threshold: 0.6,
    tone: "warn",
    say(report, threshold) {
      const shares = factored(report)
        .map(shareForMostEnergy)
        .filter((share) => share !== null);
      const typical = median(shares);
      if (typical === null || typical < threshold) return null;
      return (
        "The spectra are flat: 90 % of a typical layer's energy needs about " +
        `${percent(typical)} of its rank. int8 or int4 may lose less at the same size.`
      );
    },
  },
  {
    name: "kept_dense",
    threshold: 0.25,
    tone: "warn",
    say(report, threshold) {
      const kept = report.layers.filter((layer) => !isFactored(layer));
      const size = (layers) => sum(layers.map((layer) => layer.parameters_before));
      const share = size(kept) / Math.max(1, size(report.layers));
      if (!kept.length || share < threshold) return null;
      const reasons = grouped(kept, (layer) => layer.reason ?? "unknown");
      const [reason] = [...reasons].reduce((a, b) => (size(b[1]) > size(a[1]) ? b : a));
      const why = REASONS[reason] ?? reason;
      return (
        `${kept.length} of ${plural(report.layers.length, "selected weight")} stayed ` +
        `dense, with ${percent(share)} of their parameters. Most because: ${why}`
      );
    },
  },
  {
    name: "left_out",
    threshold: 0.5,
    tone: "warn",
    say({ not_selected: rules = [] }, threshold) {
      const share = sum(rules.map((rule) => rule.share));
      if (!rules.length || share < threshold) return null;
      const largest = rules.reduce((a, b) => (b.share > a.share ? b : a));
      return (
        `${percent(share)} of the parameters were left out, most by “${largest.rule}”: no ` +
        `rank can save more than the other ${percent(1 - share)}.`
      );
    },
  },
  {
    name: "not_finite",
    threshold: 1,
    tone: "bad",
    say(report, threshold) {
      const broken = report.layers.filter((layer) => layer.reason === "not_finite");
      if (broken.length < threshold) return null;
      return (
        `${plural(broken.length, "weight")} ${have(broken.length)} NaN or infinity: ` +
        `${listed(broken.map((layer) => layer.name))}. Look at the input.`
      );
    },
  },
];

export const NOTHING = { name: "nothing", tone: "good", text: "Nothing stands out: no rule found a fault." };

/**
 * Say what stands out in a report, as `{name, tone, text}`; texts hold names of layers, so they are text, never HTML.
 */
export function diagnose(report) {
  const said = DIAGNOSES.map(({ name, tone, threshold, say }) => ({ name, tone, text: say(report, threshold) }));
  const found = said.filter(({ text }) => text !== null);
  return found.length ? found : [NOTHING];
}

/** The share of all ranks that has 90 % of a layer's energy. */
function shareForMostEnergy(layer) {
  const points = likelySpectrumOf(layer);
  if (points === null) return null;
  const upTo = energiesOf(points);
  const wanted = 0.9 * upTo.at(-1);
  const at = upTo.findIndex((energy) => energy >= wanted);
  if (!wanted) return null;
  const [before, less] = at ? [points[at - 1][0], upTo[at - 1]] : [0, 0];
  const rank = before + ((points[at][0] - before) * (wanted - less)) / (upTo[at] - less);
  return rank / points.at(-1)[0];
}

/** Say what a budget of the same size would give these layers, where the spectra tell. */
function budgetAdvice(report, layers) {
  const rule = report.spec?.rank;
  if (rule && typeof rule === "object" && ("budget" in rule || "budget_bytes" in rule)) return "";
  const ranks = likelyRanks(factored(report));
  if (ranks === null) return "";
  const mean = (values) => Math.round(sum(values) / values.length);
  const [now, then] = [mean(layers.map((layer) => layer.rank)), mean(layers.map((layer) => ranks.get(layer)))];
  if (then <= now) return "";
  return ` A budget of the same size would give them a rank of about ${then} in place of ${now}.`;
}
