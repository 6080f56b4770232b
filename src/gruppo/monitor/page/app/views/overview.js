/**
 * Overview: one verdict in plain words, how far the run is, eight curves, the last alarms.
 */
import { join } from '../api.js';
import { LineChart } from '../charts/line.js';
import { duration, exact, percent, short, signed } from '../format.js';
import { html } from '../html.js';
import { useMetrics, useResource, useSmoothing, useTitle } from '../hooks.js';
import { Ago, Choice, Empty, Fact, Level, Problem, Section } from '../parts/basics.js';
import { FindingLine, keyOf } from '../parts/finding.js';
import { go, href } from '../routes.js';
import { hasValues, lastOf } from '../series.js';
import { Untrusted, flat } from '../untrusted.js';
import { OVERVIEW } from '../words.js';

const KEYS = OVERVIEW.flatMap((chart) => chart.keys.map(([key]) => key));

/** @param {import('./index.js').ViewProps} props */
export function Overview({ run, summary, versions }) {
  useTitle(summary.name);
  return html`
    <${Verdict} verdict=${summary.verdict} run=${run} />
    <${Progress} summary=${summary} />
    <${Charts} run=${run} summary=${summary} versions=${versions} />
    <${Section} title="Last findings" aside=${html`<a href=${href('health', { run })}>All checks</a>`}>
      ${
        summary.findings.length
          ? html`<ul
          class="finding-list">${summary.findings.map(
            (finding) => html`<${FindingLine} key=${keyOf(finding)} run=${run}
          finding=${finding} />`,
          )}</ul>`
          : html`<${Empty}
          title="Nothing found so far.">The checks look at every step; what they find appears here with the answers that prove it.<//>`
      }
    <//>
  `;
}

/** @param {{verdict: any, run: string}} props */
const Verdict = ({ verdict, run }) => html`
  <section class=${`verdict verdict-${verdict.level}`} aria-label="Verdict">
    <h1><${Level} level=${verdict.level} /> <${Untrusted} text=${verdict.text} /></h1>
    ${
      verdict.facts.length > 0 &&
      html`<ul>
      ${verdict.facts.map(
        (fact) =>
          html`<li><${Level} level=${fact.level} label="" /><span class="sr-only">${fact.level}: </span>${
            fact.code === 'findings'
              ? html`<a href=${href('health', { run })}><${Untrusted} text=${fact.text} />
            </a>`
              : html`<${Untrusted} text=${fact.text} />`
          }</li>`,
      )}
    </ul>`
    }
  </section>
`;

/** @param {{summary: any}} props */
function Progress({ summary }) {
  const { progress, latest, config, time, updated, attempts } = summary;
  const share = progress?.share;
  return html`
    <section class="card progress-card" aria-label="Progress">
      <div class="progress-line">
        <b>step ${exact(progress?.step)}${progress?.max_steps ? ` of ${exact(progress.max_steps)}` : ''}</b>
        ${
          share !== null &&
          share !== undefined &&
          html`<progress max="1" value=${share}
          aria-label="Progress">${percent(share)}</progress><span>${percent(share)}</span>`
        }
      </div>
      <dl class="facts">
        ${
          summary.state === 'running' &&
          html`<${Fact} label="Time left"
          value=${progress?.eta_seconds ? `about ${duration(progress.eta_seconds)}` : 'not known yet'} />`
        }
        <${Fact} label="Last written" value=${html`<${Ago} time=${updated} now=${time} />`} />
        <${Fact} label="Per step" value=${duration(progress?.seconds_per_step)} />
        <${Fact} label="Tokens per second" value=${short(latest?.['perf/tokens_per_second'])} />
        <${Fact} label="Answers per prompt" value=${short(config?.num_generations)} />
        <${Fact} label="Device" ...${deviceWords(summary.device)} />
        ${attempts.length > 1 && html`<${Fact} label="Attempts" value=${attempts.length} note="resumed" />`}
      </dl>
    </section>
  `;
}

/** A CPU's name is no more than its architecture. @param {any} device */
function deviceWords(device) {
  if (!device) return { value: '–' };
  const name = flat(device.name ?? '');
  const times = device.count > 1 ? `${device.count} × ` : '';
  if (device.type === 'cpu') return { value: `${times}CPU`, note: name };
  return { value: `${times}${name || flat(device.type)}` };
}

/** @param {{run: string, summary: any, versions: any}} props */
function Charts({ run, summary, versions }) {
  const { curves, error } = useMetrics(run, { keys: KEYS }, versions.metrics);
  const evals = useResource(`runs/${join(run)}/evals`, { max_points: 300 }, versions.metrics);
  const [window, setWindow] = useSmoothing('overview');
  const open = (step) => go(href('step', { run, step }));
  const marks = curves.attempts.slice(1).map(({ attempt, first }) => ({ step: first, label: `attempt ${attempt}` }));
  if (error && curves.steps.length === 0) return html`<${Problem} error=${error} />`;
  return html`
    <div class="chart-head">
      <h2>Curves</h2>
      <span
        class="muted">${curves.bucket > 1 ? `each point is ${curves.bucket} steps; ` : ''}a click opens the step</span>
      <${Choice} label="Smoothing" value=${String(window)} options=${[
        ['1', 'none'],
        ['5', '5'],
        ['20', '20'],
      ]}
        onPick=${(value) => setWindow(Number(value))} />
    </div>
    <div class="chart-grid" data-step=${summary.progress?.step}>
      ${OVERVIEW.map((chart) =>
        chart.id === 'heldout'
          ? html`<${HeldOut} chart=${chart} evals=${evals.data}
            onOpen=${(step) => go(href('step', { run, step }, { split: Object.keys(evals.data.splits)[0] }))} />`
          : html`<${LineChart} key=${chart.id} class=${`chart-${chart.id}`} title=${chart.title} note=${chart.note}
            steps=${curves.steps} lastSteps=${curves.lastSteps}
              lines=${linesOf(chart, curves)} format=${chart.format} unit=${chart.unit} range=${chart.range} marks=${marks} window=${window} onOpen=${open} sync="overview"
              delta=${change(curves.series[chart.keys[0][0]]?.mean, chart.format)} />`,
      )}
    </div>
  `;
}

/** @param {import('../words.js').ChartOf} chart @param {import('../series.js').Curves} curves */
function linesOf(chart, curves) {
  return chart.keys
    .filter(([key]) => hasValues(curves, key))
    .map(([key, label]) => {
      const { mean, min, max } = curves.series[key];
      const band = chart.band && curves.bucket > 1 ? { low: min, high: max } : {};
      return { label, values: mean, ...band };
    });
}

/** How much the last tenth is above the first tenth. @param {(number|null)[]|undefined} values @param {any} format */
function change(values, format) {
  const known = (values ?? []).filter((value) => value !== null);
  const size = Math.max(1, Math.floor(known.length / 10));
  if (known.length < 10) return null;
  const mean = (part) => part.reduce((sum, value) => sum + value, 0) / part.length;
  const difference = mean(known.slice(-size)) - mean(known.slice(0, size));
  const words =
    format === percent ? `${difference > 0 ? '+' : ''}${(difference * 100).toFixed(0)} points` : signed(difference);
  return html`<span title="mean of the last tenth minus mean of the first tenth">${words} since the start</span>`;
}

/** @param {{chart: any, evals: any, onOpen: (step: number) => void}} props */
function HeldOut({ chart, evals, onOpen }) {
  const splits = Object.entries(evals?.splits ?? {}).filter(([, split]) => split.series.reward);
  const steps = [...new Set(splits.flatMap(([, split]) => split.steps))].sort((a, b) => a - b);
  const lines = splits.map(([name, split]) => {
    const at = new Map(split.steps.map((step, i) => [step, split.series.reward.mean[i]]));
    return { label: name, values: steps.map((step) => at.get(step) ?? null) };
  });
  const best = splits.length === 1 ? splits[0][1].best : null;
  const isPast = best && best.step !== lastOf(steps);
  return html`<${LineChart} class="chart-heldout" title=${chart.title} note=${chart.note} steps=${steps} lines=${lines}
    empty=${chart.empty} onOpen=${onOpen}
    openWords="opens its answers" delta=${isPast ? `best ${short(best.reward)} at step ${best.step}` : null} />`;
}
