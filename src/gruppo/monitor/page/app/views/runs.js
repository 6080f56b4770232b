/**
 * Runs: all runs of the folder, latest activity first; two of them can be picked to compare.
 */
import { percent, short } from '../format.js';
import { html, useEffect, useState } from '../html.js';
import { useTitle } from '../hooks.js';
import { Ago, Empty, State, waiting } from '../parts/basics.js';
import { Untrusted, flat } from '../untrusted.js';
import { go, href } from '../routes.js';

const REFRESH_MS = 5000;

/** @param {import('./index.js').ViewProps} props */
export function Runs({ runs }) {
  const [picked, setPicked] = useState(/** @type {string[]} */ ([]));
  useTitle('Runs');
  useEffect(() => {
    const timer = setInterval(() => !document.hidden && runs.reload(), REFRESH_MS);
    return () => clearInterval(timer);
  }, []);
  if (!runs.data) return waiting(runs);
  const { runs: rows, time, truncated } = runs.data;
  if (rows.length === 0) {
    return html`<h1>Runs</h1><${Empty}
      title="No runs in this folder yet.">A run appears here with its first recorded step: any folder with a run.json below the folder that gruppo monitor was given.<//>`;
  }
  const toggle = (id) =>
    setPicked(picked.includes(id) ? picked.filter((other) => other !== id) : [...picked, id].slice(-2));
  return html`
    <div class="section-head">
      <h1>Runs</h1>
      <button type="button" class="primary" disabled=${picked.length !== 2}
        onClick=${() => go(href('compare', { a: picked[0], b: picked[1] }))}>
        Compare ${picked.length === 2 ? 'these two' : `(pick two${picked.length ? ', one is picked' : ''})`}
      </button>
    </div>
    ${truncated && html`<p class="note">There are more runs than are listed; the latest are shown.</p>`}
    <ul class="run-list">
      ${rows.map(
        (row) => html`<${Row} key=${row.id} row=${row} time=${time} isPicked=${picked.includes(row.id)}
        onPick=${() => toggle(row.id)} />`,
      )}
    </ul>
  `;
}

/** @param {{row: any, time: number, isPicked: boolean, onPick: () => void}} props */
const Row = ({ row, time, isPicked, onPick }) => html`
  <li class="card run-row">
    <label class="run-pick"><input type="checkbox" checked=${isPicked} onChange=${onPick} /><span
      class="sr-only">Compare ${flat(row.name)}</span></label>
    <div class="run-main">
      <a class="run-name" href=${href('overview', { run: row.id })}><${Untrusted} text=${row.name} /></a>
      <span class="muted"><${Untrusted} text=${row.model ?? 'model not recorded'} /></span>
    </div>
    <div class="run-state"><${State} state=${row.state} /><span class="muted"><${Ago} time=${row.updated} now=${time} />
      </span></div>
    <dl class="facts run-facts">
      <div><dt>step</dt>
        <dd>${short(row.step)}${row.max_steps ? html`<span class="muted"> / ${short(row.max_steps)}</span>` : ''}</dd>
          </div>
      <div><dt>reward</dt><dd>${short(row.reward)}</dd></div>
      <div><dt>held-out</dt><dd>${short(row.eval_reward)}</dd></div>
    </dl>
    ${
      row.progress !== null &&
      html`<progress max="1" value=${row.progress}
      aria-label=${`Progress of ${flat(row.name)}`}>${percent(row.progress)}</progress>`
    }
  </li>
`;
