/**
 * Step: the round of prompts that fed a step, groups that matter first; arrows walk through steps and groups.
 */
import { join } from '../api.js';
import { NONE, percent, plural, short } from '../format.js';
import { html, useEffect, useState } from '../html.js';
import { useResource, useTitle } from '../hooks.js';
import { useKeys } from '../keys.js';
import { Crumbs, Empty, Fact, Pager, Select, Stepper, waiting } from '../parts/basics.js';
import { Kind, RewardDots, promptLine, spread } from '../parts/group_parts.js';
import { go, href } from '../routes.js';
import { Untrusted, cut, flat } from '../untrusted.js';

const SORTS = [
  ['attention', 'what needs a look'],
  ['-mean', 'highest reward'],
  ['mean', 'lowest reward'],
  ['-std', 'largest spread'],
  ['-length', 'longest'],
  ['length', 'shortest'],
  ['group_id', 'number'],
];

/** @param {import('./index.js').ViewProps} props */
export function LatestStep({ run, summary }) {
  const { last } = summary.rollouts;
  useTitle(`${summary.name}: steps`);
  useEffect(() => {
    if (last !== null) go(href('step', { run, step: last }), true);
  }, [last]);
  return last === null
    ? html`<${Empty} title="No answers recorded yet.">They appear with the first generation round.<//>`
    : html`<p class="loading">Opening step ${last} ...</p>`;
}

/** @param {import('./index.js').ViewProps} props */
export function Step({ run, summary, route, versions }) {
  const { step } = route.params;
  const { split = 'train', sort = 'attention', page = '1' } = route.query;
  const isLatest = Number(step) >= (summary.rollouts.last ?? Infinity);
  const groups = useResource(
    `runs/${join(run)}/steps/${join(step)}/groups`,
    { split, sort, page },
    isLatest ? versions.rollouts : 0,
  );
  const [marked, setMarked] = useState(0);
  useTitle(`${summary.name}: step ${step}`);
  const { data } = groups;
  const open = (query) => go(href('step', { run, step }, { ...route.query, ...query }));
  const toStep = (target) =>
    target !== null && target !== undefined && go(href('step', { run, step: target }, { sort: route.query.sort }));
  const toGroup = (i) => {
    const target = Math.min(Math.max(i, 0), (data?.groups.length ?? 1) - 1);
    setMarked(target);
    document.getElementById(`group-row-${target}`)?.focus();
  };
  useKeys({
    ArrowLeft: () => toStep(data?.previous),
    ArrowRight: () => toStep(data?.next),
    ArrowDown: () => toGroup(document.activeElement?.id.startsWith('group-row-') ? marked + 1 : marked),
    ArrowUp: () => toGroup(marked - 1),
    u: () => go(href('overview', { run })),
  });
  if (groups.error?.status === 404) {
    return html`<${Head} run=${run} step=${step} data=${null} toStep=${toStep} />
      <${Empty} title=${`Nothing is recorded for step ${flat(step)}${split === 'train' ? '' : ` of ${flat(split)}`}.`}>
        <a href=${href('latestStep', { run })}>Open the latest step</a><//>`;
  }
  if (!data) return html`<${Head} run=${run} step=${step} data=${null} toStep=${toStep} />${waiting(groups)}`;
  const { totals } = data;
  return html`
    <${Head} run=${run} step=${step} data=${data} toStep=${toStep} />
    ${
      !data.is_exact &&
      html`<p
      class="note">Step ${step} was fed by the round of step ${data.round_step}: a round can feed several steps.</p>`
    }
    ${
      data.unreadable_parts > 0 &&
      html`<p
      class="note">${plural(data.unreadable_parts, 'file')} of this round cannot be read.</p>`
    }
    <dl class="facts">
      <${Fact} label="Reward" value=${short(totals.reward_mean)}
        note=${`${short(totals.reward_min)} to ${short(totals.reward_max)}`} />
      <${Fact} label="Groups" value=${short(data.num_groups)} note=${plural(data.num_completions, 'answer')} />
      <${Fact} label="Mean length" value=${short(totals.length_mean)} note="tokens" />
      <${Fact} label="Groups that teach" value=${data.num_groups ? percent(totals.num_mixed / data.num_groups) : NONE}
        note=${`${totals.num_solved} solved, ${totals.num_failed} failed`} />
    </dl>
    <div class="toolbar">
      <${Select} label="Sorted by" value=${sort} options=${SORTS} onPick=${(value) => open({ sort: value, page: 1 })} />
      ${
        data.splits.length > 1 &&
        html`<${Select} label="Set" value=${split}
        options=${data.splits.map((name) => [name, name])} onPick=${(value) => open({ split: value, page: 1 })} />`
      }
    </div>
    <${GroupMap} run=${run} step=${data.round_step} split=${split} groups=${data.groups} />
    <ol class="group-list">
      ${data.groups.map(
        (group, i) => html`<${GroupRow} key=${group.group_id} run=${run} step=${data.round_step} split=${split}
          group=${group} totals=${totals} i=${i} onFocus=${() => setMarked(i)} />`,
      )}
    </ol>
    <${Pager} page=${data.page} numPages=${data.num_pages} onPage=${(next) => open({ page: next })}
      label="pages of groups" />
  `;
}

/** @param {{run: string, step: string, data: any, toStep: (step: any) => void}} props */
const Head = ({ run, step, data, toStep }) => html`
  <${Crumbs} crumbs=${[
    [href('overview', { run }), 'Overview'],
    [null, `Step ${flat(step)}`],
  ]} />
  <div class="section-head">
    <h1>Step ${flat(step)}</h1>
    <${Stepper} previous=${data?.previous} next=${data?.next} onOpen=${toStep} labels=${['step before', 'step after']} />
  </div>
`;

/** One sign per group: which of them carry a signal. @param {{run: string, step: number, split: string, groups: any[]}} props */
const GroupMap = ({ run, step, split, groups }) => html`
  <div class="group-map" role="group" aria-label="Groups of this round: which of them teach">
    ${groups.map(
      (group) => html`<a class=${`map-cell kind-${group.kind}`}
        href=${href('group', { run, step, group: group.group_id }, splitQuery(split))}
          title=${`group ${group.group_id}: ${group.kind}, ${spread(group)}`}><${Kind} kind=${group.kind} bare /><span
          class="sr-only"> group ${group.group_id}</span></a>`,
    )}
  </div>
`;

/** @param {string} split */
const splitQuery = (split) => (split === 'train' ? {} : { split });

/** @param {any} props */
function GroupRow({ run, step, split, group, totals, i, onFocus }) {
  const best = indexOfMost(group.rewards);
  return html`
    <li class=${`card group-row kind-edge-${group.kind}`}>
      <div class="group-row-main">
        <a class="group-row-link" id=${`group-row-${i}`} onFocus=${onFocus}
          href=${href('group', { run, step, group: group.group_id }, splitQuery(split))}>
          <span class="sr-only">Group ${group.group_id}: </span><${Untrusted}
            text=${cut(promptLine(group.prompt), 160) || '(empty prompt)'} />
        </a>
        <p class="preview"><span class="muted">best answer</span> <${Untrusted}
          text=${cut(group.previews[best] ?? '', 200) || '(empty)'} /></p>
      </div>
      <div class="group-row-side">
        <span><${Kind} kind=${group.kind} /> <span class="muted">group ${group.group_id}</span>${
          group.num_faults > 0 ? html` <span class="chip fault">${plural(group.num_faults, 'reward fault')}</span>` : ''
        }</span>
        <${RewardDots} rewards=${group.rewards} low=${totals.reward_min ?? 0} high=${totals.reward_max ?? 1}
          mean=${group.mean} />
        <span class="muted">${spread(group)}</span>
      </div>
    </li>
  `;
}

/** @param {(number|null)[]} values */
const indexOfMost = (values) =>
  values.reduce((best, value, i) => ((value ?? -Infinity) > (values[best] ?? -Infinity) ? i : best), 0);
