/**
 * Completion: one answer whole, with its rewards and their statuses; as written or with every space visible.
 */
import { getJson, join } from '../api.js';
import { duration, exact, plural, short } from '../format.js';
import { html, useEffect, useState } from '../html.js';
import { useMore, useResource, useTitle } from '../hooks.js';
import { useKeys } from '../keys.js';
import { Choice, Crumbs, Fact, Section, Stepper, waiting } from '../parts/basics.js';
import { Advantage, Reason } from '../parts/group_parts.js';
import { PromptText } from '../parts/prompt_text.js';
import { DataTable } from '../parts/table.js';
import { go, href } from '../routes.js';
import { Untrusted, flat } from '../untrusted.js';
import { STATUSES } from '../words.js';

/** Code points per further piece of a long text. */
const PIECE = 100000;

/** @param {any} data @param {string} run */
export const crumbsOf = (data, run) => {
  const query = data.split === 'train' ? {} : { split: data.split };
  return [
    [href('overview', { run }), 'Overview'],
    [href('step', { run, step: data.step }, query), `Step ${data.step}`],
    [
      href('group', { run, step: data.step, group: data.group_id }, { ...query, sample: data.sample }),
      `Group ${data.group_id}`,
    ],
  ];
};

/** @param {import('./index.js').ViewProps} props */
export function Completion({ run, summary, route }) {
  const { id } = route.params;
  const answer = useResource(`runs/${join(run)}/rollouts/${join(id)}`);
  const [mode, setMode] = useState('text');
  const { data } = answer;
  useTitle(data ? `${summary.name}: step ${data.step}, answer ${data.sample}` : 'Answer');
  const open = (target) => target && go(href('completion', { run, id: target }));
  const query = data && data.split !== 'train' ? { split: data.split } : {};
  useKeys({
    j: () => open(data?.next),
    k: () => open(data?.previous),
    t: () => go(href('tokens', { run, id })),
    u: () =>
      data && go(href('group', { run, step: data.step, group: data.group_id }, { ...query, sample: data.sample })),
  });
  if (!data)
    return html`<${Crumbs} crumbs=${[
      [href('overview', { run }), 'Overview'],
      [null, `Answer ${id}`],
    ]} />
    <h1>Answer</h1>${waiting(answer)}`;
  return html`
    <${Crumbs} crumbs=${[...crumbsOf(data, run), [null, `Answer ${data.sample}`]]} />
    <div class="section-head">
      <h1>Answer ${data.sample} <span class="muted">of ${data.siblings.length}</span></h1>
      <${Stepper} previous=${data.previous} next=${data.next} onOpen=${open} labels=${['answer before', 'next answer']}
        keys=${['k', 'j']} />
    </div>
    <dl class="facts">
      <${Fact} label="Reward" value=${short(data.reward)}
        note=${data.group_mean === null ? null : `group ${short(data.group_mean)} ± ${short(data.group_std)}`} />
      <${Fact} label="Advantage" value=${html`<${Advantage} value=${data.advantage} />`} />
      <${Fact} label="Ended" value=${html`<${Reason} reason=${data.finish_reason} />`} />
      <${Fact} label="Tokens" value=${short(data.n_completion)}
        note=${data.n_trained === data.n_completion ? null : `${data.n_trained} trained`} />
      <${Fact} label="Entropy" value=${short(data.entropy_mean)} note="nats per token" />
      <${Fact} label="Sampled by" value=${`policy of step ${short(data.policy_version)}`}
        note=${data.seconds ? duration(data.seconds) : null} />
    </dl>
    <${Section} title="Answer"
      aside=${html`<span class="aside"><${Choice} label="Show" value=${mode}
      options=${[
        ['text', 'as written'],
        ['raw', 'every character'],
      ]} onPick=${setMode} />
      ${data.has_tokens ? html`<a class="button" href=${href('tokens', { run, id })}>Tokens</a>` : null}</span>`}>
      <${LongText} run=${run} id=${id} first=${data.completion} raw=${mode === 'raw'} />
    <//>
    <${Section} title="Rewards"><${Rewards} data=${data} /><//>
    <${Section} title="Prompt"
      aside=${html`<a href=${href('prompt', { run, prompt: data.prompt_id }, query)}>This prompt in other steps</a>`}>
      <${PromptText} prompt=${data.prompt} raw=${mode === 'raw'} /><//>
    <${Section} title="Recorded with it"><${Rest} data=${data} /><//>
  `;
}

/** @param {{data: any}} props */
function Rewards({ data }) {
  const columns = [
    'function',
    'status',
    { label: 'value', numeric: true },
    { label: 'weight', numeric: true },
    { label: 'contribution', numeric: true },
  ];
  const rows = data.terms.map((term) => [
    html`<${Untrusted} text=${term.name} />`,
    html`<span class=${term.status === 'ok' ? '' : 'term-fault'}
      title=${STATUSES[term.status] ?? ''}>${term.status === 'ok' ? '✓ ok' : `! ${flat(term.status)}: ${STATUSES[term.status] ?? ''}`}</span>`,
    exact(term.value),
    exact(term.weight),
    term.value === null || term.weight === null ? '–' : exact(term.value * term.weight),
  ]);
  rows.push([html`<b>sum</b>`, '', '', '', html`<b>${exact(data.reward)}</b>`]);
  return html`<${DataTable} caption="Rewards of this answer" columns=${columns} rows=${rows} hidden />`;
}

/** @param {{data: any}} props */
function Rest({ data }) {
  const entries = Object.entries(data.extras ?? {});
  return html`
    ${
      entries.length > 0 &&
      html`<${DataTable} caption="Logged by reward functions" columns=${['name', 'value']}
      rows=${entries.map(([name, value]) => [
        html`<${Untrusted} text=${name} />`,
        html`<${Untrusted}
      text=${value} />`,
      ])} />`
    }
    ${
      data.columns &&
      html`<details class="columns" open><summary>Other columns of this dataset row</summary><pre
      tabindex="0"><${Untrusted} text=${data.columns.text} /></pre></details>`
    }
    <p
      class="muted">Row ${data.prompt_id} of the dataset, attempt ${data.attempt}, ${flat(data.split)}, id ${flat(data.id)}.</p>
  `;
}

/** A text that may be megabytes: the first piece, then more on request; pieces that are off screen cost no layout. */
function LongText({ run, id, first, raw }) {
  const [pieces, setPieces] = useState([first.text]);
  const [next, setNext] = useState(first.next_offset);
  useEffect(() => {
    setPieces([first.text]);
    setNext(first.next_offset);
  }, [id, first.text]);
  const { more, problem } = useMore(
    [id, first.text],
    (offset, signal) => getJson(`runs/${join(run)}/rollouts/${join(id)}/text`, { offset, limit: PIECE }, signal),
    (answer) => {
      setPieces((old) => [...old, answer.text]);
      setNext(answer.next_offset);
    },
  );
  if (!first.num_chars) return html`<p class="empty-title">(empty)</p>`;
  return html`
    <pre class="long-text" tabindex="0"
      aria-label="The answer">${pieces.map(
        (piece) => html`<span class="piece"><${Untrusted} text=${piece} raw=${raw} />
      </span>`,
      )}</pre>
    ${
      next !== null &&
      html`<p><button type="button" onClick=${() => more(next)}>Show more</button> <span
      class="muted">${plural(first.num_chars - next, 'character')} left of ${short(first.num_chars)}</span></p>`
    }
    ${problem && html`<p class="problem" role="alert">${problem.message}</p>`}
  `;
}
