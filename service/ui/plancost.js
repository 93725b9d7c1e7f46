// What a plan costs, in words, and the jobs that measured it.

import { count, error as errorText, plural } from "./format.js";

export const MEANING =
  "An error of 0 leaves weights as they are, one of 1 keeps nothing of them; what a " +
  "model's answers lose, only a test of it shows. ";

export function costFigure(cost, plan) {
  if (plan.totals.layers_factored === 0) return ["none", "nothing is replaced"];
  if (cost === null) return ["not known", "measured by the job"];
  const [least, most] = [errorText(cost.least), errorText(cost.most)];
  if (!cost.known) return [`at most ${most}`, "no singular values known yet"];
  if (cost.floor) return [`at least ${least}`, "chosen columns and rows lose more than the singular values tell"];
  return [least === most ? `about ${most}` : `${least}–${most}`, "from the singular values"];
}

/** Finished jobs as points: parameters, what they cost, a text, and their id. */
export function jobsOnCurve(jobs, isLoss) {
  const cost = ({ summary: s }) => (isLoss ? s.predicted_loss : (s.weighted_error ?? s.relative_error));
  const told = isLoss ? "predicted loss" : "error";
  return jobs
    .filter((job) => cost(job) != null)
    .map((job) => {
      const size = job.summary.parameters_after;
      return [
        size,
        cost(job),
        `job ${job.id.slice(0, 9)}: ${told} ${errorText(cost(job))}, ${count(size)} parameters`,
        job.id,
      ];
    });
}

export function curveNote(from, isDrawn, isLoss) {
  if (!isDrawn) return "";
  if (from === null) {
    return (
      "No job has computed the singular values of this checkpoint yet. The line is a " +
      "bound that holds for any weights; " +
      "trained weights lose less. After the first job there is a curve here. "
    );
  }
  const what = isLoss ? "How much the loss rises, by the gradients of the calibration: estimated" : "Estimated";
  return (
    `${what} from the singular values that job ${from.slice(0, 9)} has computed, with ` +
    "the numbers that the method stores. " +
    `“Shared out” gives rank to the layers where it lowers the whole ${isLoss ? "loss" : "error"} most, ` +
    `as a budget with "objective": "${isLoss ? "loss" : "absolute"}" does. `
  );
}

export function withoutNote(without, all) {
  if (without === 0) return "";
  const which = without === all ? "These layers have" : `${plural(without, "layer has", "layers have")}`;
  return (
    `${which} no curve here: what is rounded to integers has one size, and of chosen columns nothing is known before ` +
    "the first job. The job measures their error."
  );
}
