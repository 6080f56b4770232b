/**
 * Small parts that every view uses: severity badges, errors, empty places, pagers, links with their route.
 */
import { ago } from '../format.js';
import { html, useEffect, useState } from '../html.js';
import { flat } from '../untrusted.js';

/** Level -> glyph and word. Never colour alone. */
export const LEVELS = {
  ok: ['✓', 'ok'],
  info: ['i', 'info'],
  warn: ['!', 'warning'],
  alert: ['‼', 'alert'],
  unknown: ['?', 'not known'],
};

/** State of a run -> glyph and words. */
export const STATES = {
  running: ['▶', 'running'],
  silent: ['◌', 'silent: it has not written for a while'],
  stalled: ['◔', 'stalled: it lives but does not move on'],
  dead: ['✕', 'dead: its process has gone'],
  finished: ['✓', 'finished'],
  failed: ['✕', 'failed'],
  empty: ['○', 'no steps yet'],
};

/** @param {{level: string, label?: string}} props `level`: ok | info | warn | alert, any case */
export function Level({ level, label }) {
  const name = level.toLowerCase();
  const [glyph, word] = LEVELS[name] ?? LEVELS.unknown;
  return html`<span class=${`level level-${name}`}><span class="glyph"
    aria-hidden="true">${glyph}</span>${label ?? word}</span>`;
}

/** @param {{state: string}} props */
export function State({ state }) {
  const [glyph, words] = STATES[state] ?? ['?', flat(state)];
  return html`<span class=${`state state-${state}`} title=${words}
    ><span aria-hidden="true">${glyph}</span> ${words.split(':')[0]}</span
  >`;
}

/** @param {{error: {code: string, message: string}, retry?: () => void}} props */
export const Problem = ({ error, retry }) => html`
  <div class="problem" role="alert">
    <p><strong>This could not be loaded.</strong> ${error.message}</p>
    ${retry && html`<button type="button" onClick=${retry}>Try again</button>`}
  </div>
`;

/** An empty place says why it is empty and what would fill it. @param {{title: string, children?: any}} props */
export const Empty = ({ title, children }) => html`
  <div class="empty">
    <p class="empty-title">${title}</p>
    ${children && html`<p>${children}</p>`}
  </div>
`;

/** What a resource shows while it has nothing to show. @param {import('../hooks.js').Resource} resource */
export function waiting(resource) {
  if (resource.error && !resource.data) return html`<${Problem} error=${resource.error} retry=${resource.reload} />`;
  if (!resource.data) return html`<p class="loading" aria-busy="true">Loading ...</p>`;
  return null;
}

/**
 * To the neighbours of what is shown; null or undefined where there is none.
 * @param {{previous: any, next: any, onOpen: (target: any) => void, labels: string[], arrows?: string[], keys?: string[]}} props
 */
export const Stepper = ({ previous, next, onOpen, labels, arrows = ['←', '→'], keys = [] }) => html`
  <span class="stepper">
    ${[previous, next].map(
      (target, i) => html`<button type="button" disabled=${(target ?? null) === null} aria-label=${labels[i]}
        title=${keys[i]} onClick=${() => onOpen(target)}>${arrows[i]}</button>`,
    )}
  </span>
`;

/** @param {{page: number, numPages: number, onPage: (page: number) => void, label?: string}} props */
export function Pager({ page, numPages, onPage, label = 'pages' }) {
  if (numPages < 2) return null;
  return html`
    <nav class="pager" aria-label=${label}>
      <button type="button" disabled=${page <= 1} onClick=${() => onPage(page - 1)}>← previous</button>
      <span>page ${page} of ${numPages}</span>
      <button type="button" disabled=${page >= numPages} onClick=${() => onPage(page + 1)}>next →</button>
    </nav>
  `;
}

/** One choice of few. @param {{label: string, value: string, options: [string, string][], onPick: (value: string) => void}} props */
export const Choice = ({ label, value, options, onPick }) => html`
  <div class="choice" role="group" aria-label=${label}>
    <span class="choice-label" aria-hidden="true">${label}</span>
    ${options.map(
      ([key, text]) =>
        html`<button type="button" aria-pressed=${String(key === value)}
          onClick=${() => onPick(key)}>${flat(text)}</button>`,
    )}
  </div>
`;

/** A drop-down. @param {{label: string, value: string, options: [string, string][], onPick: (value: string) => void}} props */
export const Select = ({ label, value, options, onPick }) => html`
  <label class="select">
    <span>${label}</span>
    <select value=${value} onChange=${(event) => onPick(event.currentTarget.value)}>
      ${options.map(([key, text]) => html`<option value=${key} selected=${key === value}>${flat(text)}</option>`)}
    </select>
  </label>
`;

/** A section with a heading. @param {{title: any, note?: any, aside?: any, children?: any, id?: string}} props */
export const Section = ({ title, note, aside, children, id }) => html`
  <section class="section" id=${id}>
    <div class="section-head">
      <h2>${title}</h2>
      ${aside}
    </div>
    ${note && html`<p class="note">${note}</p>`} ${children}
  </section>
`;

/** Where one is: links from the run down. @param {{crumbs: [string|null, any][]}} props target or null for "here" */
export const Crumbs = ({ crumbs }) => html`
  <nav class="crumbs" aria-label="Where you are">
    <ol>
      ${crumbs.map(
        ([target, label]) =>
          html`<li>${
            target
              ? html`<a href=${target}>${label}</a>`
              : html`<span
            aria-current="page">${label}</span>`
          }</li>`,
      )}
    </ol>
  </nav>
`;

/** A number of words with a value below. @param {{label: string, value: any, note?: any}} props */
export const Fact = ({ label, value, note }) => html`
  <div class="fact">
    <dt>${label}</dt>
    <dd>${value}${note && html`<span class="fact-note">${note}</span>`}</dd>
  </div>
`;

const TICK_MS = 5000;

/** How long ago, going on by itself. @param {{time: number|null, now: number}} props both by the server's clock */
export function Ago({ time, now }) {
  const [seen, setSeen] = useState({ at: Date.now(), tick: 0 });
  useEffect(() => {
    setSeen({ at: Date.now(), tick: 0 });
    const timer = setInterval(() => setSeen((old) => ({ ...old, tick: old.tick + 1 })), TICK_MS);
    return () => clearInterval(timer);
  }, [time, now]);
  return html`<span>${ago(time, now + (Date.now() - seen.at) / 1000)}</span>`;
}
