/**
 * Prompt history: what the policy answered to one prompt, step after step. And the way in: choosing a prompt.
 */
import { getJson, join } from '../api.js';
import { LineChart } from '../charts/line.js';
import { plural, short } from '../format.js';
import { html, useEffect, useState } from '../html.js';
import { useMore, useResource, useTitle } from '../hooks.js';
import { useKeys } from '../keys.js';
import { Crumbs, Empty, Section, waiting } from '../parts/basics.js';
import { RewardDots, promptLine } from '../parts/group_parts.js';
import { PromptText } from '../parts/prompt_text.js';
import { go, href } from '../routes.js';
import { Untrusted, cut } from '../untrusted.js';

/** @param {import('./index.js').ViewProps} props */
export function Prompts({ run, summary }) {
  const [wanted, setWanted] = useState('');
  const { last } = summary.rollouts;
  const groups = useResource(last === null ? null : `runs/${join(run)}/steps/${last}/groups`, {
    per_page: 100,
    sort: 'group_id',
  });
  useTitle(`${summary.name}: prompts`);
  const open = (event) => {
    event.preventDefault();
    if (wanted.trim() !== '') go(href('prompt', { run, prompt: wanted.trim() }));
  };
  return html`
    <h1>Prompts</h1>
    <p class="note">The same prompt across steps shows best what the policy has learned, and what it has unlearned.</p>
    <form class="toolbar" onSubmit=${open}>
      <label class="select"><span>Row of the dataset</span><input type="number" min="0" value=${wanted}
        onInput=${(event) => setWanted(event.currentTarget.value)} /></label>
      <button type="submit">Show its history</button>
    </form>
    ${
      last === null
        ? html`<${Empty} title="No answers recorded yet.">They appear with the first generation round.<//>`
        : html`<${Section} title=${`Prompts of the latest round (step ${last})`}>
          ${
            groups.data
              ? html`<ul
              class="plain-list">${groups.data.groups.map(
                (group) => html`<li><a
              href=${href('prompt', { run, prompt: group.prompt_id })}><${Untrusted}
              text=${cut(promptLine(group.prompt), 140) || '(empty prompt)'} /></a> <span
              class="muted">row ${group.prompt_id}</span></li>`,
              )}</ul>`
              : waiting(groups)
          }
        <//>`
    }
  `;
}

/** Visits that are loaded piece by piece, from the newest on. */
function useVisits(run, prompt, split, version) {
  const path = `runs/${join(run)}/prompts/${join(prompt)}/history`;
  const first = useResource(path, { split, limit: 50 }, version);
  const [older, setOlder] = useState({ visits: [], before: undefined, prompt: null });
  useEffect(() => setOlder({ visits: [], before: undefined, prompt: null }), [path, split]);
  const before = older.before === undefined ? first.data?.next_before : older.before;
  const { more, problem } = useMore(
    [path, split],
    (place, signal) => getJson(path, { split, limit: 50, before: place }, signal),
    (answer) =>
      setOlder((old) => ({
        visits: [...old.visits, ...answer.visits],
        before: answer.next_before,
        prompt: answer.prompt,
      })),
  );
  return {
    first,
    visits: [...(first.data?.visits ?? []), ...older.visits],
    prompt: first.data?.prompt ?? older.prompt,
    before,
    more: () => more(before),
    problem,
  };
}

/** @param {import('./index.js').ViewProps} props */
export function PromptHistory({ run, summary, route, versions }) {
  const { prompt: id } = route.params;
  const { split = 'train' } = route.query;
  const { first, visits, prompt, before, more, problem } = useVisits(run, id, split, versions.rollouts);
  useTitle(`${summary.name}: prompt ${id}`);
  useKeys({ u: () => go(href('prompts', { run })) });
  if (!first.data) return html`<h1>Prompt ${id}</h1>${waiting(first)}`;
  const oldestFirst = [...visits].reverse();
  const query = split === 'train' ? {} : { split };
  const open = (step) => {
    const visit = visits.find((each) => each.step === step);
    if (visit) go(href('group', { run, step, group: visit.group_id }, query));
  };
  return html`
    <${Crumbs}
      crumbs=${[
        [href('overview', { run }), 'Overview'],
        [href('prompts', { run }), 'Prompts'],
        [null, `Row ${id}`],
      ]} />
    <h1>Prompt ${id} <span class="muted">${plural(visits.length, 'visit')}${before === null ? '' : ' so far'}</span>
      </h1>
    ${prompt && html`<${PromptText} prompt=${prompt} />`}
    ${
      visits.length === 0
        ? html`<${Empty}
        title="No visit of this prompt was found.">${before === null ? 'It was never drawn in this set.' : 'Older rounds were not searched yet.'}<//>`
        : visits.length > 1 &&
          html`<${LineChart} title="Reward of this prompt" note="Mean of its answers; the shade spans worst to best."
        steps=${oldestFirst.map((visit) => visit.step)}
          lines=${[{ label: 'mean', values: oldestFirst.map((visit) => visit.mean), low: oldestFirst.map((visit) => edge(visit.rewards, Math.min)), high: oldestFirst.map((visit) => edge(visit.rewards, Math.max)) }]} onOpen=${open} openWords="opens its group" />`
    }
    <${Visits} run=${run} visits=${visits} query=${query} />
    ${
      before !== null &&
      before !== undefined &&
      html`<p><button type="button"
      onClick=${more}>Search older rounds</button></p>`
    }
    ${problem && html`<p class="problem" role="alert">${problem.message}</p>`}
    <p><a href=${href('compareChoice', {}, { a: run, prompt: id })}>The same prompt in another run</a></p>
  `;
}

/** @param {(number|null)[]} values @param {(...values: number[]) => number} pick */
const edge = (values, pick) => {
  const known = values.filter((value) => value !== null);
  return known.length ? pick(...known) : null;
};

/** @param {{run: string, visits: any[], query: Record<string, string>}} props */
export function Visits({ run, visits, query }) {
  const rewards = visits.flatMap((visit) => visit.rewards).filter((reward) => reward !== null);
  const [low, high] = [Math.min(...rewards), Math.max(...rewards)];
  return html`
    <ol class="visits">
      ${visits.map((visit) => {
        const best = visit.rewards.reduce(
          (at, reward, i) => ((reward ?? -Infinity) > (visit.rewards[at] ?? -Infinity) ? i : at),
          0,
        );
        return html`
          <li class="card visit">
            <div class="visit-head">
              <a href=${href('group', { run, step: visit.step, group: visit.group_id }, query)}>step ${visit.step}</a>
              <${RewardDots} rewards=${visit.rewards} low=${low} high=${high} mean=${visit.mean} />
              <span class="muted">${short(visit.mean)} ± ${short(visit.std)}</span>
            </div>
            <p class="preview"><span class="muted">best</span> <a
              href=${href('completion', { run, id: visit.ids[best] })}><${Untrusted}
              text=${visit.previews[best] || '(empty)'} /></a></p>
          </li>
        `;
      })}
    </ol>
  `;
}
