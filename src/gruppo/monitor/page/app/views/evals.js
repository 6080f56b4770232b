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
/** Nothing is trained in an evaluation, so nothing is clipped; lengths of a part of the answers are in the table. */
const DULL = /^clip_ratio\/|terminated|^loss$/;
/** What is asked first comes first; the rest follows as it is. */
const FIRST = [/^rewards\/.*\/mean$/, /mean_length$/, /clipped_ratio$/, /^groups\//, /zero_std/, /^entropy$/, /^rewards\//];
/** With one answer per prompt, a group has no spread. */
const OF_GROUPS = /^groups\/|zero_std/;
const rank = (key) => {
  const place = FIRST.findIndex((pattern) => pattern.test(key));
  return place < 0 ? FIRST.length : place;
};
const MAX_CURVES = 9;

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
        hasGroups=${summary.config?.num_generations_eval !== 1}
        training=${curves} />`,
          )
    }
  `;
}

/** @param {{run: string, name: string, split: any, hasGroups: boolean, training: import('../series.js').Curves}} props */
function EvalSet({ run, name, split, hasGroups, training }) {
  const { steps, series, best } = split;
  const open = (step) => go(href('step', { run, step }, { split: name }));
  const names = Object.keys(series).filter((key) => !ASIDE.test(key));
  const trained = training.series.reward?.mean ?? [];
  const beside = steps.map((step) => (training.steps.length ? trained[nearest(training.steps, step)] : null));
  const latest = lastOf(series.reward?.mean);
  const passes = names.filter((key) => PASS.test(key));
  const others = names
    .filter((key) => key !== 'reward' && !PASS.test(key) && !DULL.test(key) && (hasGroups || !OF_GROUPS.test(key)))
    .sort((one, two) => rank(one) - rank(two))
    .slice(0, MAX_CURVES);
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
          range=${formatOf(key) === percent ? [0, 1] : undefined} lines=${[{ label: key, values: series[key].mean }]} />`,
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
