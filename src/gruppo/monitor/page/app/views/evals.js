/**
 * Evals: every evaluation set over the steps, its best step, and the way to its answers.
 */
import { join } from '../api.js';
import { LineChart } from '../charts/line.js';
import { exact, percent, short } from '../format.js';
import { html } from '../html.js';
import { useMetrics, useResource, useTitle } from '../hooks.js';
import { Empty, Fact, Section, waiting } from '../parts/basics.js';
import { DataTable } from '../parts/table.js';
import { go, href } from '../routes.js';
import { lastOf, nearest } from '../series.js';
import { flat } from '../untrusted.js';
import { formatOf } from '../words.js';

/** Kept out of the curves: they say how the evaluation ran, not how good the policy is. */
const ASIDE = /runtime|per_second|^num_tokens$|^epoch$/;
const PASS = /^pass@/;

/** @param {import('./index.js').ViewProps} props */
export function Evals({ run, summary, versions }) {
  const evals = useResource(`runs/${join(run)}/evals`, {}, versions.metrics);
  const { curves } = useMetrics(run, { keys: ['reward'] }, versions.metrics);
  useTitle(`${summary.name}: evals`);
  if (!evals.data) return html`<h1>Evals</h1>${waiting(evals)}`;
  const splits = Object.entries(evals.data.splits);
  return html`
    <h1>Evals</h1>
    ${
      splits.length === 0
        ? html`<${Empty}
        title="No evaluation is recorded.">Give the trainer an eval_dataset, and set eval_strategy="steps" and eval_steps: only held-out prompts show whether the reward is being gamed.<//>`
        : splits.map(
            ([name, split]) => html`<${EvalSet} key=${name} run=${run} name=${name} split=${split}
        training=${curves} />`,
          )
    }
  `;
}

/** @param {{run: string, name: string, split: any, training: import('../series.js').Curves}} props */
function EvalSet({ run, name, split, training }) {
  const { steps, series, best } = split;
  const open = (step) => go(href('step', { run, step }, { split: name }));
  const names = Object.keys(series).filter((key) => !ASIDE.test(key));
  const trained = training.series.reward?.mean ?? [];
  const beside = steps.map((step) => (training.steps.length ? trained[nearest(training.steps, step)] : null));
  const latest = lastOf(series.reward?.mean);
  const passes = names.filter((key) => PASS.test(key));
  const others = names.filter((key) => key !== 'reward' && !PASS.test(key)).slice(0, 12);
  return html`
    <${Section} title=${name === 'eval' ? 'Held-out prompts' : flat(name)}>
      <dl class="facts">
        <${Fact} label="Latest reward" value=${short(latest)} note=${`step ${steps[steps.length - 1]}`} />
        ${
          best &&
          html`<${Fact} label="Best reward" value=${short(best.reward)}
          note=${html`<a href=${href('step', { run, step: best.step }, { split: name })}>step ${best.step}</a>`} />`
        }
        <${Fact} label="Evaluations" value=${short(split.num_rows)} />
      </dl>
      <div class="chart-grid wide">
        ${
          series.reward &&
          html`<${LineChart} title="Held-out and training reward"
          note="If they part, the policy learns the training prompts or the reward's weak spots." steps=${steps}
          onOpen=${open} openWords="opens its answers"
          lines=${[
            { label: 'held-out', values: series.reward.mean },
            { label: 'training', values: beside },
          ]} />`
        }
        ${
          passes.length > 0 &&
          html`<${LineChart} title="pass@k" note="Chance that at least one of k answers is right."
          format=${percent} range=${[0, 1]} steps=${steps} onOpen=${open} value=${null}
          lines=${passes.map((key) => ({ label: key, values: series[key].mean }))} />`
        }
        ${others.map(
          (key) => html`<${LineChart} title=${key} steps=${steps} onOpen=${open} format=${formatOf(key)}
          lines=${[{ label: key, values: series[key].mean }]} />`,
        )}
      </div>
      <details class="columns"><summary>All numbers</summary>
        <${DataTable} caption=${`Evaluations of ${name}`} hidden
          columns=${[{ label: 'step', numeric: true }, ...Object.keys(series).map((label) => ({ label, numeric: true }))]}
          rows=${steps
            .map((step, i) => [
              html`<a
          href=${href('step', { run, step }, { split: name })}>${step}</a>`,
              ...Object.values(series).map((column) => exact(column.mean[i])),
            ])
            .reverse()} />
      </details>
    <//>
  `;
}
