/**
 * Compare: two runs side by side: what was set differently, where their curves part, the same prompt in both.
 */
import { join } from '../api.js';
import { LineChart } from '../charts/line.js';
import { exact, setting, short, signed } from '../format.js';
import { html, useState } from '../html.js';
import { useLive, useResource, useTitle } from '../hooks.js';
import { Empty, Section, Select, State, waiting } from '../parts/basics.js';
import { promptLine } from '../parts/group_parts.js';
import { DataTable } from '../parts/table.js';
import { go, href } from '../routes.js';
import { lastOf } from '../series.js';
import { Untrusted } from '../untrusted.js';
import { OVERVIEW, formatOf } from '../words.js';
import { Visits } from './prompt.js';

/** Metric and title: the first of each chart of the Overview, both of "Drift". */
const CURVES = OVERVIEW.flatMap(({ id, title, keys }) =>
  id === 'drift' ? keys.map(([key, label]) => [key, `${title}: ${label}`]) : keys.slice(0, 1).map(([key]) => [key, title]),
);

/** @param {import('./index.js').ViewProps} props */
export function CompareChoice({ route, runs }) {
  const { prompt } = route.query;
  const rows = runs.data?.runs ?? [];
  const [a, setA] = useState(route.query.a ?? '');
  const [b, setB] = useState('');
  useTitle('Compare');
  if (!runs.data) return waiting(runs);
  const first = a || rows[0]?.id;
  const second = b || rows.find((row) => row.id !== first)?.id;
  if (rows.length < 2)
    return html`<h1>Compare</h1><${Empty}
    title="There is only one run here.">Two are needed: start gruppo monitor on a folder that holds both.<//>`;
  const options = rows.map((row) => [row.id, row.name]);
  return html`
    <h1>Compare two runs</h1>
    <div class="toolbar">
      <${Select} label="A" value=${first} options=${options} onPick=${setA} />
      <${Select} label="B" value=${second} options=${options} onPick=${setB} />
      <button type="button" class="primary" disabled=${!second || first === second}
        onClick=${() => go(href('compare', { a: first, b: second }, { prompt }))}>Compare</button>
    </div>
  `;
}

/** @param {import('./index.js').ViewProps} props */
export function Compare({ route, runs }) {
  const { a, b } = route.params;
  const versions = [useLive(a), useLive(b)];
  const compared = useResource(
    'compare',
    { a, b, keys: CURVES.map(([key]) => key), max_points: 300 },
    versions.map((each) => each.metrics).join('/'),
  );
  const { data } = compared;
  useTitle(data ? `${data.a.name} and ${data.b.name}` : 'Compare');
  if (!data) return html`<h1>Compare</h1>${waiting(compared)}`;
  const options = (runs.data?.runs ?? []).map((row) => [row.id, row.name]);
  const names = labels(data);
  return html`
    <h1>Compare</h1>
    <div class="pair">
      <${Side} letter="A" run=${data.a} options=${options} onPick=${(id) => go(href('compare', { a: id, b }))} />
      <button type="button" class="quiet" aria-label="Exchange A and B"
        onClick=${() => go(href('compare', { a: b, b: a }))}>⇄</button>
      <${Side} letter="B" run=${data.b} options=${options} onPick=${(id) => go(href('compare', { a, b: id }))} />
    </div>
    <${Section} title="Set differently">
      <${Differences} rows=${data.config} names=${names} empty="The settings of both runs are the same." />
      ${
        data.versions.length > 0 &&
        html`<details class="columns">
        <summary>Versions that differ (${data.versions.length})</summary><${Differences} rows=${data.versions}
          names=${names} /></details>`
      }
    <//>
    <${Section} title="Curves"><${Curves} data=${data} names=${names} /><//>
    <${Section} title="Latest values"><${Values} rows=${data.metrics} names=${names} /><//>
    <${SamePrompt} a=${a} b=${b} names=${names} route=${route} />
  `;
}

/** @param {any} data */
const labels = (data) => [`A ${data.a.name}`, `B ${data.b.name}`];

/** @param {any} props */
const Side = ({ letter, run, options, onPick }) => html`
  <div class="card side">
    <span class="letter">${letter}</span>
    <div>
      <a class="run-name" href=${href('overview', { run: run.id })}><${Untrusted} text=${run.name} /></a>
      <p><${State} state=${run.state} /> <span class="muted">step ${short(run.step)}</span></p>
    </div>
    <${Select} label=${`Run ${letter}`} value=${run.id} options=${options} onPick=${onPick} />
  </div>
`;

/** @param {{rows: any[], names: string[], empty?: string}} props */
const Differences = ({ rows, names, empty }) => html`
  <${DataTable} caption="What differs" hidden
    columns=${['name', { label: names[0], class: 'wrap' }, { label: names[1], class: 'wrap' }]} empty=${empty}
    rows=${rows.map((row) => [
      html`<code><${Untrusted} text=${row.name} /></code>`,
      html`<${Untrusted}
    text=${setting('a' in row ? row.a : undefined)} />`,
      html`<${Untrusted}
    text=${setting('b' in row ? row.b : undefined)} />`,
    ])} />
`;

/** Both runs on one axis. @param {{data: any, names: string[]}} props */
function Curves({ data, names }) {
  const { a, b } = data.series;
  const steps = [...new Set([...a.steps, ...b.steps])].sort((x, y) => x - y);
  const column = (side, key) => {
    const at = new Map(side.steps.map((step, i) => [step, side.series[key]?.mean[i] ?? null]));
    return steps.map((step) => at.get(step) ?? null);
  };
  return html`
    <div class="chart-grid">
      ${CURVES.filter(([key]) => [a, b].some(({ series }) => lastOf(series[key]?.mean) !== null)).map(([key, title]) => {
        const lines = [a, b].map((side, i) => ({ label: names[i], values: column(side, key) }));
        return html`<${LineChart} key=${key} title=${title} steps=${steps} lines=${lines} format=${formatOf(key)}
          value=${null} sync="compare" />`;
      })}
    </div>
  `;
}

/** @param {{rows: any[], names: string[]}} props */
function Values({ rows, names }) {
  const columns = [
    'metric',
    { label: names[0], numeric: true },
    { label: names[1], numeric: true },
    { label: 'B − A', numeric: true },
  ];
  const known = (value) => typeof value === 'number';
  const cells = rows.map((row) => [
    html`<code><${Untrusted} text=${row.name} />
    </code>`,
    exact(row.a),
    exact(row.b),
    known(row.a) && known(row.b) ? signed(row.b - row.a) : '–',
  ]);
  return html`<${DataTable} caption="Last training values of both runs" hidden columns=${columns} rows=${cells}
    perPage=${12} />`;
}

/** @param {any} props */
function SamePrompt({ a, b, names, route }) {
  const [text, setText] = useState(route.query.prompt ?? '');
  const wanted = route.query.prompt;
  const open = (event) => {
    event.preventDefault();
    go(href('compare', { a, b }, { prompt: text.trim() }), true);
  };
  return html`
    <${Section} title="The same prompt in both"
      note="If both runs train on the same dataset, a row is the same prompt.">
      <form class="toolbar" onSubmit=${open}>
        <label class="select"><span>Row of the dataset</span><input type="number" min="0" value=${text}
          onInput=${(event) => setText(event.currentTarget.value)} /></label>
        <button type="submit">Show</button>
      </form>
      ${
        wanted !== undefined &&
        wanted !== '' &&
        html`<div
        class="two">${[a, b].map(
          (run, i) => html`<${History} key=${run} run=${run} prompt=${wanted}
        title=${names[i]} />`,
        )}</div>`
      }
    <//>
  `;
}

/** @param {{run: string, prompt: string, title: string}} props */
function History({ run, prompt, title }) {
  const history = useResource(`runs/${join(run)}/prompts/${join(prompt)}/history`, { limit: 6 });
  return html`
    <div>
      <h3><${Untrusted} text=${title} /></h3>
      ${
        !history.data
          ? waiting(history)
          : history.data.visits.length === 0
            ? html`<${Empty} title="Not visited." />`
            : html`<p class="preview"><${Untrusted} text=${promptLine(history.data.prompt)} /></p><${Visits} run=${run}
            visits=${history.data.visits} query=${{}} />`
      }
    </div>
  `;
}
