/**
 * The frame of every view: run, its state, the list of views, theme, help, and the connection that tells of changes.
 */
import { join } from './api.js';
import { html, useEffect, useRef, useState } from './html.js';
import { useLive, useResource } from './hooks.js';
import { Help } from './help.js';
import { useKeys } from './keys.js';
import { Select, State, waiting } from './parts/basics.js';
import { go, href } from './routes.js';
import { THEMES, getTheme, setTheme, useThemeKey } from './theme.js';
import { RUN_VIEWS, VIEWS } from './views/index.js';

/** @param {{route: import('./routes.js').Route}} props */
export function Shell({ route }) {
  const { run } = route.params;
  const versions = useLive(run);
  const runs = useResource('runs', {}, versions.state);
  const summary = useResource(
    run ? `runs/${join(run)}` : null,
    {},
    `${versions.metrics}/${versions.events}/${versions.state}`,
  );
  const [isHelp, setHelp] = useState(false);
  const main = useRef(null);
  useGoKeys(run, () => setHelp(true));
  useScrollMemory(route);
  const view = VIEWS[route.name] ?? VIEWS.unknown;
  return html`
    <a class="skip" href="#main" onClick=${(event) => skip(event, main.current)}>Skip to the content</a>
    <header class="top">
      <a class="brand" href=${href('runs')}><img src="page/icon.svg" width="26" height="26" alt="" /><span>gruppo</span>
        </a>
      ${run && html`<${RunChoice} run=${run} runs=${runs.data?.runs ?? []} route=${route} />`}
      ${run && summary.data && html`<${State} state=${summary.data.state} />`}
      <span class="top-space"></span>
      ${run && html`<${Mode} mode=${versions.mode} />`}
      <${ThemeButton} />
      <button type="button" class="quiet" aria-label="Help: keys and meanings" onClick=${() => setHelp(true)}>?</button>
    </header>
    ${run && html`<${RunNav} run=${run} route=${route} summary=${summary.data} />`}
    <main id="main" ref=${main} tabindex="-1" class=${`view view-${route.name}`}>
      ${
        run && !summary.data
          ? waiting(summary)
          : html`<${view} key=${`${route.name}/${run ?? ''}`} route=${route} run=${run} summary=${summary.data}
          runs=${runs} versions=${versions} />`
      }
    </main>
    ${isHelp && html`<${Help} onClose=${() => setHelp(false)} />`}
  `;
}

/** The hash is the router's: move the focus by hand. @param {Event} event @param {HTMLElement|null} target */
function skip(event, target) {
  event.preventDefault();
  target?.focus();
}

/** A new view starts at its top; only the query changing (a page, a sort) does not move. @param {import('./routes.js').Route} route */
function useScrollMemory(route) {
  const key = `${route.name}/${Object.values(route.params).join('/')}`;
  useEffect(() => window.scrollTo(0, 0), [key]);
}

/** @param {string|undefined} run @param {() => void} onHelp */
function useGoKeys(run, onHelp) {
  const pending = useRef(0);
  /** @type {import('./keys.js').Bindings} */
  const bindings = { '?': onHelp };
  if (run) {
    bindings.g = () => {
      pending.current = Date.now();
    };
    for (const { key, name } of RUN_VIEWS) {
      bindings[key] = () => {
        if (Date.now() - pending.current > 1500) return false;
        pending.current = 0;
        go(name === 'compareChoice' ? href(name, {}, { a: run }) : href(name, { run }));
        return true;
      };
    }
  }
  useKeys(bindings);
}

/** @param {{run: string, runs: any[], route: import('./routes.js').Route}} props */
function RunChoice({ run, runs, route }) {
  const options = runs.map((entry) => [entry.id, entry.name === entry.id ? entry.id : entry.name]);
  if (!runs.some((entry) => entry.id === run)) options.unshift([run, run]);
  const stays = ['overview', 'health', 'rewards', 'latestStep', 'evals', 'timeline', 'discarded', 'settings'];
  const open = (id) => go(href(stays.includes(route.name) ? route.name : 'overview', { run: id }));
  return html`<span class="run-choice"><${Select} label="Run" value=${run} options=${options} onPick=${open} /></span>`;
}

/** @param {{run: string, route: import('./routes.js').Route, summary: any}} props */
function RunNav({ run, route, summary }) {
  const open = summary?.num_findings;
  const numOpen = open ? open.WARN + open.ALERT : 0;
  return html`
    <nav class="tabs" aria-label="Views of the run">
      <ul>
        ${RUN_VIEWS.map(({ name, label, covers }) => {
          const isHere = covers.includes(route.name);
          const target = name === 'compareChoice' ? href(name, {}, { a: run }) : href(name, { run });
          return html`<li>
            <a href=${target} aria-current=${isHere ? 'page' : null}>
              ${label}${
                name === 'health' && numOpen > 0
                  ? html`<span class=${`count ${open.ALERT ? 'count-alert' : 'count-warn'}`}>${numOpen}<span
                  class="sr-only"> open</span></span>`
                  : null
              }
            </a>
          </li>`;
        })}
      </ul>
    </nav>
  `;
}

const MODES = {
  connecting: ['◌', 'connecting', 'Asking the server for changes.'],
  live: ['●', 'live', 'The server tells this page when something was written.'],
  polling: ['◔', 'polling', 'Live updates do not get through; the page asks every five seconds.'],
  offline: ['✕', 'offline', 'The server does not answer. What you see is the last that was known.'],
  paused: ['‖', 'paused', 'Updates wait while this tab is hidden.'],
};

/** @param {{mode: keyof typeof MODES}} props */
function Mode({ mode }) {
  const [glyph, word, sentence] = MODES[mode];
  return html`<span class=${`mode mode-${mode}`} role="status" title=${sentence}><span
    aria-hidden="true">${glyph}</span> ${word}</span>`;
}

const THEME_WORDS = { auto: ['◑', 'as the system'], light: ['☀', 'light'], dark: ['☾', 'dark'] };

function ThemeButton() {
  useThemeKey();
  const theme = getTheme();
  const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  const label = `Theme: ${THEME_WORDS[theme][1]}. Switch to ${THEME_WORDS[next][1]}`;
  return html`<button type="button" class="quiet theme" aria-label=${label} title=${label}
    onClick=${() => setTheme(next)}>${THEME_WORDS[theme][0]}</button>`;
}
