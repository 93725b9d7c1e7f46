// What the forms of a weight store at a rank; as in schemas/planning/forms/.

const two = (m, n, k) => k * (m + n);
const NUMBERS = {
  svd: two,
  cx: two,
  pivot: (m, n, k) => k * (m + n - k),
  "cur in two": two,
  cur: (m, n, k) => k * (m + n + k),
};
// Their error at a rank is the least possible one: what lies behind that rank in the spectrum.
const OPTIMAL = new Set(["svd", "pivot"]);

// By method and storage: plans of many layers ask for the same few again and again.
const found = new Map();

/** The forms that a planned layer may get and that have a rank and no rounding; `svd or int8` names two. */
export function formsOf({ method }, storage = "three") {
  const key = `${storage} ${method ?? "svd"}`;
  if (!found.has(key)) {
    const names = (method ?? "svd").split(" or ").filter((name) => name in NUMBERS);
    found.set(
      key,
      names.map((name) => (name === "cur" && storage === "two" ? "cur in two" : name)),
    );
  }
  return found.get(key);
}

export const isOptimal = (forms) => forms.every((name) => OPTIMAL.has(name));

/** How many numbers a weight has at a rank, in the form of these that needs the fewest. */
export const numbersOf = (forms, [m, n], rank) => Math.min(...forms.map((name) => NUMBERS[name](m, n, rank)));

/** The largest rank with at most so many numbers, or 0. */
export function rankFor(forms, shape, numbers) {
  let [low, high] = [0, Math.min(...shape)];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (numbersOf(forms, shape, middle) <= numbers) low = middle;
    else high = middle - 1;
  }
  return low;
}
