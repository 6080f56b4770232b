/**
 * Timeline: where the time of each step goes, and what happened on the way (attempts, checkpoints, faults).
 */
import { join } from '../api.js';
import { Figure } from '../charts/figure.js';
import { LineChart } from '../charts/line.js';
import { duration, durationTick, exact, isNumber, moment, percent, setting, short, plural } from '../format.js';
import { html } from '../html.js';
import { useMetrics, useResource, useTitle, useWidth } from '../hooks.js';
import { Empty, Section, waiting } from '../parts/basics.js';
import { DataTable } from '../parts/table.js';
import { go, href } from '../routes.js';
import { Untrusted, flat } from '../untrusted.js';

const HEIGHT = 230;
const EDGE = { left: 52, right: 8, top: 18, bottom: 30 };
/** How many times longer than the usual long step a step must be to be cut off. */
const FAR = 5;
const MAX_BARS = 120;

/** @param {import('./index.js').ViewProps} props */
export function Timeline({ run, summary, versions }) {
  const { curves, error } = useMetrics(
    run,
    { keys: ['time/*', 'step_time', 'perf/tokens_per_second'], maxPoints: MAX_BARS },
    versions.metrics,
  );
  const events = useResource(`runs/${join(run)}/events`, {}, versions.events);
  useTitle(`${summary.name}: timeline`);
  const phases = Object.keys(curves.series)
    .filter((name) => name.startsWith('time/'))
    .sort((a, b) => total(curves, b) - total(curves, a));
  const open = (step) => go(href('step', { run, step }));
  return html`
    <h1>Timeline</h1>
    ${error && html`<p class="problem">${error.message}</p>`}
    ${
      phases.length === 0
        ? html`<${Empty} title="No phase times are recorded.">They are the metrics time/... of each step.<//>`
        : html`<${Phases} curves=${curves} phases=${phases} onOpen=${open} />
          <div class="two">
            <${LineChart} title="Time per step" format=${duration} axisFormat=${durationTick} steps=${curves.steps} lastSteps=${curves.lastSteps}
              range=${[0, 0]} onOpen=${open}
              lines=${[{ label: 'step', values: curves.series.step_time?.mean ?? [] }]} />
            <${LineChart} title="Tokens per second" steps=${curves.steps} lastSteps=${curves.lastSteps} range=${[0, 0]}
              onOpen=${open}
              lines=${[{ label: 'tokens per second', values: curves.series['perf/tokens_per_second']?.mean ?? [] }]} />
          </div>`
    }
    <${Section} title="Attempts"><${Attempts} attempts=${summary.attempts} /><//>
    <${Section}
      title="Events">${events.data ? html`<${Events} run=${run} events=${events.data.events} />` : waiting(events)}<//>
  `;
}

/** @param {import('../series.js').Curves} curves @param {string} name */
const total = (curves, name) => curves.series[name].mean.reduce((sum, value) => sum + (value ?? 0), 0);

/** The height of the columns; a few that are far longer than all others are cut off, and say how long they are. */
function topOf(sums) {
  const sorted = [...sums].sort((a, b) => a - b);
  const usual = sorted[Math.floor(sorted.length * 0.95)] ?? 0;
  const most = sorted[sorted.length - 1] ?? 0;
  return Math.max(usual > 0 && most > FAR * usual ? 1.5 * usual : most, 1e-9);
}

/** Stacked columns: one per step, or per bucket of steps. */
function Phases({ curves, phases, onOpen }) {
  const [box, width] = useWidth();
  const skip = Math.max(0, curves.steps.length - MAX_BARS);
  const shown = curves.steps.slice(skip);
  const at = (name, i) => curves.series[name].mean[i + skip] ?? 0;
  const sums = shown.map((_, i) => phases.reduce((sum, name) => sum + at(name, i), 0));
  const top = topOf(sums);
  const most = Math.max(...sums);
  const all = phases.reduce((sum, name) => sum + total(curves, name), 0) || 1;
  const cell = (width - EDGE.left - EDGE.right) / Math.max(shown.length, 1);
  const y = (seconds) => HEIGHT - EDGE.bottom - ((HEIGHT - EDGE.top - EDGE.bottom) * seconds) / top;
  const twin = {
    columns: [{ label: 'step', numeric: true }, ...phases.map((name) => ({ label: name.slice(5), numeric: true }))],
    rows: () => shown.map((step, i) => [step, ...phases.map((name) => duration(at(name, i)))]).reverse(),
  };
  return html`
    <${Figure} title="Where the time goes" name="Where the time goes"
      note="Seconds of each phase, stacked. A click opens the step." twin=${twin}>
      <div class="svg-box" ref=${box}>
        ${
          width > 0 &&
          html`
          <svg width=${width} height=${HEIGHT} role="img"
            aria-label=${`Phases of ${plural(shown.length, 'step')}; ${phases.map((name) => `${flat(name.slice(5))} ${percent(total(curves, name) / all)}`).join(', ')}`}>
            ${[0, 0.5, 1].map(
              (share) => html`<line x1=${EDGE.left} x2=${width - EDGE.right} y1=${y(top * share)} y2=${y(top * share)}
              class="grid" /><text x=${EDGE.left - 6} y=${y(top * share) + 4} text-anchor="end"
              class="tick">${durationTick(top * share)}</text>`,
            )}
            ${shown.map((step, i) => {
              let base = 0;
              return html`<g class="phase-bar" onClick=${() => onOpen(step)}>
                <title>step ${step}: ${duration(sums[i])}</title>
                ${phases.map((name, j) => {
                  const value = Math.min(at(name, i), top - base);
                  const bar = html`<rect x=${EDGE.left + i * cell + 0.5} width=${Math.max(cell - 1, 1)}
                    y=${y(base + value)} height=${Math.max(y(base) - y(base + value), 0)}
                    class=${`fill-${(j % 6) + 1}`} />`;
                  base += value;
                  return bar;
                })}
                ${
                  sums[i] > top &&
                  html`<text x=${EDGE.left + (i + 0.5) * cell} y=${EDGE.top - 3} class="tick"
                  text-anchor=${i * 2 > shown.length ? 'end' : 'start'}>▲${sums[i] === most ? ` ${durationTick(most)}` : ''}</text>`
                }</g>`;
            })}
            ${[0, 0.5, 1].map(
              (share) => html`<text x=${EDGE.left + share * (width - EDGE.left - EDGE.right)}
              y=${HEIGHT - 8} text-anchor=${['start', 'middle', 'end'][share * 2]}
              class="tick">${share === 1 ? `step ${shown[shown.length - 1]}` : shown[Math.round(share * (shown.length - 1))]}</text>`,
            )}
          </svg>`
        }
      </div>
      <ul
        class="share-names">${phases.map(
          (name, j) => html`<li><span class=${`square fill-${(j % 6) + 1}`}>
        </span> ${flat(name.slice(5))} <b>${percent(total(curves, name) / all)}</b></li>`,
        )}</ul>
    <//>
  `;
}

/** @param {{attempts: any[]}} props */
const Attempts = ({ attempts }) => html`
  <${DataTable} caption="Attempts" hidden
    columns=${[{ label: 'attempt', numeric: true }, 'started', 'ended', { label: 'from step', numeric: true }, 'outcome']}
    rows=${attempts.map((each) => [each.attempt, moment(each.started), each.ended ? moment(each.ended) : 'not recorded', short(each.start_step), flat(each.outcome ?? '–')])} />
`;

const COMMON = new Set(['kind', 'attempt', 'time', 'rank', 'step', 'evidence', 'docs', 'advice']);

/** @param {{run: string, events: any[]}} props */
function Events({ run, events }) {
  const rows = [...events]
    .sort((a, b) => b.time - a.time)
    .map((event) => [
      moment(event.time),
      flat(event.kind).replaceAll('_', ' '),
      event.step === undefined || event.step === null
        ? '–'
        : html`<a
      href=${href('step', { run, step: event.step })}>${event.step}</a>`,
      html`<${Untrusted} text=${words(event)} />`,
    ]);
  return html`<${DataTable} caption="Events, newest first" hidden
    columns=${[
      { label: 'time', class: 'nowrap' },
      { label: 'what', class: 'nowrap' },
      { label: 'step', numeric: true },
      { label: 'details', class: 'wrap' },
    ]}
    rows=${rows} perPage=${15} empty="No events." />`;
}

/** @param {any} event */
const words = (event) =>
  event.kind === 'finding'
    ? `${event.is_cleared ? 'cleared' : event.severity} ${event.detector} ${event.name}: ${event.message}`
    : fields(event);

const MAX_FIELDS = 8;

/** @param {any} event */
function fields(event) {
  const known = Object.entries(event).filter(([name, value]) => !COMMON.has(name) && value !== null && value !== '');
  const rest = known.length > MAX_FIELDS ? `; and ${known.length - MAX_FIELDS} more in events.jsonl` : '';
  return (
    known
      .slice(0, MAX_FIELDS)
      .map(([name, value]) => `${name.replaceAll('_', ' ')}: ${isNumber(value) ? exact(value) : setting(value)}`)
      .join('; ') + rest
  );
}
