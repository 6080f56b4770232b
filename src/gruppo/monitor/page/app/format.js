/**
 * Numbers, durations and times as people read them. `–` stands for "not recorded".
 */
export const NONE = '–';
const MINUS = '−';

/** @param {number|null|undefined} value */
export const isNumber = (value) => typeof value === 'number' && Number.isFinite(value);

/** Three significant digits, thousands with k and M, tiny and huge with an exponent. @param {any} value */
export function short(value) {
  if (!isNumber(value)) return NONE;
  const size = Math.abs(value);
  if (size === 0) return '0';
  if (size >= 1e9 || size < 1e-4) return sign(value.toExponential(1).replace('.0e', 'e').replace('e+', 'e'));
  if (size >= 1e6) return sign(`${trim(value / 1e6)}M`);
  if (size >= 1e4) return sign(`${trim(value / 1e3)}k`);
  return sign(Number.isInteger(value) ? String(value) : trim(value));
}

/** @param {number} value */
const trim = (value) => {
  const text = Math.abs(value) >= 100 ? value.toFixed(Math.abs(value) >= 1000 ? 0 : 1) : value.toPrecision(3);
  return text.includes('e') ? String(Number(text)) : text.replace(/(\.\d*?)0+$/, '$1').replace(/\.$/, '');
};

/** @param {string} text */
const sign = (text) => text.replaceAll('-', MINUS);

/** With its sign in front. @param {any} value */
export const signed = (value) => (isNumber(value) && value > 0 ? `+${short(value)}` : short(value));

/** @param {any} value 0..1 */
export function percent(value) {
  if (!isNumber(value)) return NONE;
  const share = value * 100;
  return `${share > 0 && share < 1 ? share.toFixed(1) : Math.round(share)}%`;
}

/** All digits that matter, for tables. @param {any} value @param {number} [digits] */
export function exact(value, digits = 6) {
  if (!isNumber(value)) return value === null || value === undefined ? NONE : String(value);
  if (Number.isInteger(value)) return sign(String(value));
  if (Math.abs(value) < 1e-4) return sign(value.toExponential(2).replace(/\.?0*e/, 'e'));
  return sign(String(Number(value.toPrecision(digits))));
}

/** @param {any} seconds */
export function duration(seconds) {
  if (!isNumber(seconds)) return NONE;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  // Rounded before it is split: no "60 s" beside minutes.
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${String(whole % 60).padStart(2, '0')} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, '0')} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** As short as an axis needs it. @param {any} seconds */
export function durationTick(seconds) {
  if (!isNumber(seconds)) return NONE;
  if (seconds === 0) return '0';
  for (const [size, unit] of UNITS) if (seconds >= size) return `${coarse(seconds / size)} ${unit}`;
  return `${coarse(seconds * 1000)} ms`;
}

/** @param {number} value */
const coarse = (value) => Number(value.toPrecision(value < 100 ? 2 : 3));

/** @type {[number, string][]} */
const UNITS = [
  [86400, 'd'],
  [3600, 'h'],
  [60, 'min'],
  [1, 's'],
];

/** How long ago. @param {any} time seconds since 1970 @param {number} [now] */
export function ago(time, now = Date.now() / 1000) {
  if (!isNumber(time)) return NONE;
  const seconds = Math.max(0, now - time);
  return seconds < 5 ? 'just now' : `${duration(Math.round(seconds))} ago`;
}

/** @param {any} time seconds since 1970, or an ISO text */
export function moment(time) {
  const date = isNumber(time) ? new Date(time * 1000) : new Date(String(time));
  return Number.isNaN(date.getTime()) ? NONE : date.toLocaleString();
}

/** @param {number} count @param {string} one @param {string} [many] */
export const plural = (count, one, many = `${one}s`) => `${short(count)} ${count === 1 ? one : many}`;

/** A setting's value as one would write it. @param {any} value */
export function setting(value) {
  if (value === undefined) return 'not set';
  if (value === null) return 'none';
  if (isNumber(value) && value !== 0 && Math.abs(value) < 1e-3)
    return String(Number(value.toPrecision(6)).toExponential());
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}
