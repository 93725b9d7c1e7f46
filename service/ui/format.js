// Numbers, sizes and times as text.

const WHOLE = new Intl.NumberFormat("en-US");
const CLOCK = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const TIME = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });

export function whole(number) {
  return number == null ? "–" : WHOLE.format(number);
}

function scaled(number, unit) {
  const steps = [
    [1e12, "T"],
    [1e9, unit === "B" ? "G" : "B"],
    [1e6, "M"],
    [1e3, "k"],
  ];
  const [size, prefix] = steps.find(([least]) => Math.abs(number) >= least * 0.9995) ?? [1, ""];
  const value = number / size;
  const digits = size === 1 ? 0 : Math.abs(value) >= 99.95 ? 0 : Math.abs(value) >= 9.995 ? 1 : 2;
  return `${value.toFixed(digits)}${prefix || unit ? " " : ""}${prefix}${unit}`.trim();
}

export function bytes(number) {
  return number == null ? "–" : scaled(number, "B");
}

/** 22.7 M, as people speak of parameters. */
export function count(number) {
  return number == null ? "–" : scaled(number, "");
}

export function percent(share, digits = 1) {
  return share == null ? "–" : `${(share * 100).toFixed(digits)} %`;
}

export function error(value) {
  if (value == null) return "–";
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : value.toFixed(3);
}

export function seconds(value) {
  if (value == null) return "–";
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  const minutes = Math.round(value / 60);
  return minutes < 120 ? `${minutes} min` : `${(value / 3600).toFixed(1)} h`;
}

export function clock(text) {
  return CLOCK.format(new Date(text));
}

export function time(text) {
  return text ? TIME.format(new Date(text)) : "–";
}

export function plural(number, one, many = `${one}s`) {
  return `${whole(number)} ${number === 1 ? one : many}`;
}
