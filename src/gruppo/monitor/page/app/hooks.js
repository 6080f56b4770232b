/**
 * What views hold on to: answers of the server, the curves of a run, the size of an element, the theme.
 */
import { getJson, join } from './api.js';
import { useEffect, useRef, useState } from './html.js';
import { LiveRun } from './live.js';
import { flat } from './untrusted.js';
import { addSeries, emptySeries } from './series.js';

/** @typedef {{data: any, error: import('./api.js').ApiError|null, isLoading: boolean, reload: () => void}} Resource */

const COMPLETE_MS = 150;

/**
 * The server's answer, asked again when `version` changes; the old one stays until the new one is there.
 * @param {string|null} path null: ask nothing
 * @param {import('./api.js').Params} [params]
 * @param {number|string} [version]
 * @returns {Resource}
 */
export function useResource(path, params = {}, version = 0) {
  const key = path === null ? null : `${path}?${JSON.stringify(params)}`;
  const [state, setState] = useState({ key: '', data: null, error: null });
  const [attempt, setAttempt] = useState(0);
  useEffect(() => {
    if (path === null) return undefined;
    const abort = new AbortController();
    let timer = 0;
    getJson(path, params, abort.signal).then(
      (data) => {
        setState({ key, data, error: null });
        if (data.complete === false) timer = setTimeout(() => setAttempt((n) => n + 1), COMPLETE_MS);
      },
      (error) => {
        if (abort.signal.aborted) return;
        setState((old) => ({ key, data: old.key === key ? old.data : null, error }));
      },
    );
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [key, version, attempt]);
  const isCurrent = state.key === key;
  return {
    data: isCurrent ? state.data : null,
    error: isCurrent ? state.error : null,
    isLoading: key !== null && !isCurrent,
    reload: () => setAttempt((n) => n + 1),
  };
}

/**
 * Something that comes piece by piece, on request: `more(place)` asks for the next piece and hands the answer on.
 * @template Answer
 * @param {any[]} of what the pieces belong to; an answer that comes after a change is dropped
 * @param {(place: any, signal: AbortSignal) => Promise<Answer>} ask
 * @param {(answer: Answer) => void} take
 * @returns {{more: (place: any) => Promise<void>, problem: import('./api.js').ApiError|null}}
 */
export function useMore(of, ask, take) {
  const [problem, setProblem] = useState(null);
  const asking = useRef({ abort: new AbortController(), place: null });
  useEffect(() => {
    setProblem(null);
    asking.current = { abort: new AbortController(), place: null };
    return () => asking.current.abort.abort();
  }, of);
  const more = async (place) => {
    const mine = asking.current;
    const { signal } = mine.abort;
    if (mine.place === place) return; // a double click asks for a piece once
    mine.place = place;
    setProblem(null);
    try {
      const answer = await ask(place, signal);
      if (!signal.aborted) take(answer);
    } catch (error) {
      mine.place = null;
      if (!signal.aborted) setProblem(error);
    }
  };
  return { more, problem };
}

/**
 * Curves that grow: the first answer is everything, later ones only what is new.
 * @param {string} run
 * @param {{keys: string[], split?: string, maxPoints?: number, from?: number, to?: number}} wanted
 * @param {number} version
 */
export function useMetrics(run, { keys, split = 'train', maxPoints = 500, from, to }, version) {
  const key = JSON.stringify([run, keys, split, maxPoints, from, to]);
  const [state, setState] = useState({ key: '', curves: emptySeries(), error: null });
  const held = useRef({ key: '', curves: emptySeries() });
  useEffect(() => {
    const abort = new AbortController();
    let timer = 0;
    if (held.current.key !== key) held.current = { key, curves: emptySeries() };
    const ask = async () => {
      const { curves } = held.current;
      const cursor = curves.steps.length > 2 * maxPoints ? null : curves.cursor;
      const params = { keys, split, max_points: maxPoints, cursor, from, to };
      const answer = await getJson(`runs/${join(run)}/metrics`, params, abort.signal);
      held.current = { key, curves: addSeries(cursor === null ? emptySeries() : curves, answer) };
      setState({ ...held.current, error: null });
      if (answer.complete === false) timer = setTimeout(() => ask().catch(fail), COMPLETE_MS);
    };
    const fail = (error) => {
      if (!abort.signal.aborted) setState({ ...held.current, error });
    };
    ask().catch(fail);
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [key, version]);
  const isCurrent = state.key === key;
  return {
    curves: isCurrent ? state.curves : emptySeries(),
    error: isCurrent ? state.error : null,
    isLoading: !isCurrent,
  };
}

/** The width of an element. @returns {[import('preact').RefObject<HTMLElement>, number]} */
export function useWidth() {
  const ref = useRef(null);
  const [width, setWidth] = useState(0);
  useEffect(() => {
    if (!ref.current) return undefined;
    const observer = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    observer.observe(ref.current);
    return () => observer.disconnect();
  }, []);
  return [ref, width];
}

/** The title of the browser's tab. @param {string} title */
export function useTitle(title) {
  useEffect(() => {
    document.title = `${flat(title)} · gruppo`;
  }, [title]);
}

/** A value of this browser, kept over visits. @template T @param {string} name @param {T} initial */
export function useKept(name, initial) {
  const key = `gruppo-${name}`;
  const [value, setValue] = useState(() => {
    try {
      return JSON.parse(localStorage.getItem(key) ?? 'null') ?? initial;
    } catch {
      return initial;
    }
  });
  const keep = (next) => {
    localStorage.setItem(key, JSON.stringify(next));
    setValue(next);
  };
  return [value, keep];
}

/** Points per smoothing window, kept over visits. @param {string} view */
export const useSmoothing = (view) => useKept(`smoothing-${view}`, 1);

/** @type {import('./live.js').Versions} */
const STILL = { metrics: 0, events: 0, rollouts: 0, state: 0, mode: 'connecting' };

/** @param {string|undefined} run @returns {import('./live.js').Versions} */
export function useLive(run) {
  const [versions, setVersions] = useState(STILL);
  useEffect(() => {
    setVersions(STILL);
    if (!run) return undefined;
    const live = new LiveRun(run, setVersions);
    return () => live.close();
  }, [run]);
  return versions;
}
