/**
 * Every view's address. Routes live in the fragment, so that they work below any proxy prefix and reach no server log.
 */

/** Route name -> path. `:name` is a parameter. First match wins. */
export const ROUTES = {
  runs: '/',
  compare: '/compare/:a/:b',
  compareChoice: '/compare',
  overview: '/run/:run',
  health: '/run/:run/health',
  rewards: '/run/:run/rewards',
  latestStep: '/run/:run/step',
  step: '/run/:run/step/:step',
  group: '/run/:run/step/:step/group/:group',
  completion: '/run/:run/sample/:id',
  tokens: '/run/:run/sample/:id/tokens',
  prompts: '/run/:run/prompt',
  prompt: '/run/:run/prompt/:prompt',
  evals: '/run/:run/evals',
  timeline: '/run/:run/timeline',
  discarded: '/run/:run/discarded',
  settings: '/run/:run/settings',
};

/** @typedef {{name: string, params: Record<string, string>, query: Record<string, string>}} Route */

/**
 * @param {keyof typeof ROUTES} name
 * @param {Record<string, string|number>} [params]
 * @param {Record<string, string|number|null|undefined>} [query]
 */
export function href(name, params = {}, query = {}) {
  const path = ROUTES[name].replace(/:(\w+)/g, (_, key) => encodeURIComponent(String(params[key])));
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== '');
  const text = new URLSearchParams(given.map(([key, value]) => [key, String(value)])).toString();
  return `#${path}${text ? `?${text}` : ''}`;
}

/** @param {string} hash @returns {Route} name `unknown` if nothing matches */
export function parse(hash) {
  const [path, text = ''] = hash.replace(/^#/, '').split('?', 2);
  const parts = split(path);
  const query = Object.fromEntries(new URLSearchParams(text));
  for (const [name, pattern] of Object.entries(ROUTES)) {
    const params = match(split(pattern), parts);
    if (params) return { name, params, query };
  }
  return { name: 'unknown', params: {}, query };
}

/** @param {string} path */
const split = (path) => path.split('/').filter(Boolean);

/** @param {string[]} pattern @param {string[]} parts @returns {Record<string, string>|null} */
function match(pattern, parts) {
  if (pattern.length !== parts.length) return null;
  /** @type {Record<string, string>} */
  const params = {};
  for (const [i, piece] of pattern.entries()) {
    if (!piece.startsWith(':')) {
      if (piece !== parts[i]) return null;
      continue;
    }
    try {
      params[piece.slice(1)] = decodeURIComponent(parts[i]);
    } catch {
      return null;
    }
  }
  return params;
}

/** Go there. `replace`: without a step in the history. @param {string} target @param {boolean} [replace] */
export function go(target, replace = false) {
  if (!replace) location.hash = target;
  else {
    history.replaceState(null, '', target);
    dispatchEvent(new HashChangeEvent('hashchange'));
  }
}
