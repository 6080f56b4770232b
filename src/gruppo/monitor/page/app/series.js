/**
 * Curves as columns, and how an answer of `metrics` is added to them. Pure functions.
 *
 * @typedef {{mean: (number|null)[], min: (number|null)[], max: (number|null)[]}} Columns
 * @typedef {{
 *   cursor: string|null, bucket: number, steps: number[], lastSteps: number[], series: Record<string, Columns>,
 *   names: string[], attempts: {attempt: number, first: number, last: number}[], numRows: number
 * }} Curves
 */

/** @returns {Curves} */
export const emptySeries = () => ({
  cursor: null,
  bucket: 1,
  steps: [],
  lastSteps: [],
  series: {},
  names: [],
  attempts: [],
  numRows: 0,
});

/**
 * @param {Curves} held
 * @param {any} answer of GET metrics
 * @returns {Curves}
 */
export function addSeries(held, answer) {
  const before = answer.reset ? emptySeries() : held;
  const numOld = before.steps.length;
  /** @type {Record<string, Columns>} */
  const series = {};
  for (const name of new Set([...Object.keys(before.series), ...Object.keys(answer.series)])) {
    series[name] = joined(before.series[name], answer.series[name], numOld, answer.steps.length);
  }
  return {
    cursor: answer.cursor,
    bucket: Math.max(before.bucket, answer.bucket ?? 1),
    steps: [...before.steps, ...answer.steps],
    lastSteps: [...before.lastSteps, ...(answer.last_steps ?? answer.steps)],
    series,
    names: answer.names ?? before.names,
    attempts: answer.attempts ?? before.attempts,
    numRows: answer.num_rows ?? before.numRows,
  };
}

/** @param {Columns|undefined} old @param {any} fresh @param {number} numOld @param {number} numNew @returns {Columns} */
function joined(old, fresh, numOld, numNew) {
  const blank = (count) => new Array(count).fill(null);
  const mean = fresh?.mean ?? blank(numNew);
  const before = old ?? { mean: blank(numOld), min: blank(numOld), max: blank(numOld) };
  return {
    mean: [...before.mean, ...mean],
    min: [...before.min, ...(fresh?.min ?? mean)],
    max: [...before.max, ...(fresh?.max ?? mean)],
  };
}

/** The last value that is one. @param {(number|null)[]|undefined} values */
export const lastOf = (values) => values?.findLast((value) => value !== null) ?? null;

/** @param {Curves} curves @param {string} name */
export const hasValues = (curves, name) => (curves.series[name]?.mean ?? []).some((value) => value !== null);

/** The position whose step is nearest. @param {number[]} steps @param {number} step */
export function nearest(steps, step) {
  let best = 0;
  for (let i = 1; i < steps.length; i += 1) if (Math.abs(steps[i] - step) < Math.abs(steps[best] - step)) best = i;
  return best;
}

/** Mean over a sliding window behind each point; sparse values stay sparse. @param {(number|null)[]} values @param {number} size */
export function smooth(values, size) {
  if (size < 2) return values;
  /** @type {number[]} */
  const window = [];
  let sum = 0;
  return values.map((value) => {
    if (value === null) return null;
    window.push(value);
    sum += value;
    if (window.length > size) sum -= window.shift() ?? 0;
    return sum / window.length;
  });
}
