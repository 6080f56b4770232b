/**
 * The access token: read once from the URL's fragment, removed from the address bar, kept for this tab only.
 * It is sent in a header by api.js and shown nowhere.
 */
const KEY = 'gruppo-monitor-token';

/** The fragment is `#token=SECRET`, optionally followed by the route to open: `#token=SECRET/run/x`. */
const FRAGMENT = /^#token=([^/&]+)(\/.*)?$/;

let token = sessionStorage.getItem(KEY) ?? '';

/** Take a token out of the address bar, if there is one. Returns whether there was. */
export function takeTokenFromAddress() {
  const match = FRAGMENT.exec(location.hash);
  if (!match) return false;
  setToken(decodeURIComponent(match[1]));
  history.replaceState(null, '', `#${match[2] ?? '/'}`);
  return true;
}

/** @param {string} value */
export function setToken(value) {
  token = value.trim();
  sessionStorage.setItem(KEY, token);
}

export const getToken = () => token;
