/**
 * Questions to the server (docs/monitor-api.md): GET with the token, JSON back. It keeps no answers.
 */
import { getToken } from './session.js';

/** An answer that says no, or no answer at all (`status` 0). */
export class ApiError extends Error {
  /** @param {number} status @param {string} code @param {string} message */
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let refused = () => {};

/** Whoever asks, the page hears of it: `listener` is called when the server does not know the token. @param {() => void} listener */
export const whenRefused = (listener) => {
  refused = listener;
};

/** @typedef {Record<string, string|number|string[]|null|undefined>} Params  null and undefined are left out */

/** @param {string} path @param {Params} [params] */
export function address(path, params = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (value === null || value === undefined) continue;
    for (const item of Array.isArray(value) ? value : [value]) query.append(name, String(item));
  }
  const text = query.toString();
  return `api/${path}${text ? `?${text}` : ''}`;
}

/**
 * @param {string} path below api/, its parts already encoded
 * @param {Params} [params]
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function getJson(path, params, signal) {
  const response = await open(address(path, params), signal);
  try {
    return await response.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(response.status, 'no_json', 'The server answered with something that is not JSON.');
  }
}

/** @param {string} url @param {AbortSignal} [signal] */
export async function open(url, signal) {
  let response;
  try {
    response = await fetch(url, { headers: { Authorization: `Bearer ${getToken()}` }, signal, cache: 'no-store' });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, 'unreachable', 'The monitor does not answer. Is `gruppo monitor` still running?');
  }
  if (response.ok) return response;
  if (response.status === 401) refused();
  const body = await response.json().catch(() => ({}));
  const { code = 'http', message = `The server answered ${response.status}.` } = body.error ?? {};
  throw new ApiError(response.status, code, message);
}

/** Path parts, encoded. @param {...(string|number)} parts */
export const join = (...parts) => parts.map((part) => encodeURIComponent(String(part))).join('/');
