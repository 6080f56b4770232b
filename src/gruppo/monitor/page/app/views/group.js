/**
 * Group: the GRPO picture of one prompt and its answers, then the answers side by side with what differs.
 */
import { join } from '../api.js';
import { GrpoPicture } from '../charts/grpo_picture.js';
import { exact, plural, short } from '../format.js';
import { html, useEffect, useState } from '../html.js';
import { useResource, useTitle } from '../hooks.js';
import { useKeys } from '../keys.js';
import { Choice, Crumbs, Section, Stepper, waiting } from '../parts/basics.js';
import { Advantage, Bar, Kind, Reason, Term, spread } from '../parts/group_parts.js';
import { PromptText } from '../parts/prompt_text.js';
import { DataTable } from '../parts/table.js';
import { newParts } from '../diff.js';
import { go, href } from '../routes.js';
import { Untrusted, flat, marked as markedText } from '../untrusted.js';
import { KINDS } from '../words.js';

const SHOWN_CHARS = 4000;

/** @param {import('./index.js').ViewProps} props */
export function Group({ run, summary, route }) {
  const { step, group: id } = route.params;
  const { split = 'train', sample = '0' } = route.query;
  const group = useResource(`runs/${join(run)}/steps/${join(step, 'groups', id)}`, { split });
  const { data } = group;
  useTitle(`${summary.name}: step ${step}, group ${id}`);
  const marked = data
    ? Math.max(
        0,
        data.completions.findIndex((answer) => String(answer.sample) === sample),
      )
    : 0;
  const query = { ...(split === 'train' ? {} : { split }) };
  const toGroup = (target) =>
    target !== null && target !== undefined && go(href('group', { run, step, group: target }, query));
  const mark = (i) => {
    const answer = data?.completions[Math.min(Math.max(i, 0), data.completions.length - 1)];
    if (answer) go(href('group', { run, step, group: id }, { ...query, sample: answer.sample }), true);
  };
  const openAnswer = (i) => data && go(href('completion', { run, id: data.completions[i].id }));
  useNeighbourSteps(run, step, query);
  useKeys({
    ArrowUp: () => toGroup(data?.previous),
    ArrowDown: () => toGroup(data?.next),
    j: () => mark(marked + 1),
    k: () => mark(marked - 1),
    Enter: () => openAnswer(marked),
    t: () => data && go(href('tokens', { run, id: data.completions[marked].id })),
    u: () => go(href('step', { run, step }, query)),
  });
  const crumbs = [
    [href('overview', { run }), 'Overview'],
    [href('step', { run, step }, query), `Step ${step}`],
    [null, `Group ${id}`],
  ];
  if (!data) return html`<${Crumbs} crumbs=${crumbs} /><h1>Group ${id}</h1>${waiting(group)}`;
  return html`
    <${Crumbs} crumbs=${crumbs} />
    <div class="section-head">
      <h1>Group ${id} <${Kind} kind=${data.kind} /></h1>
      <${Stepper} previous=${data.previous} next=${data.next} onOpen=${toGroup} labels=${['group before', 'group after']}
        arrows=${['↑', '↓']} />
    </div>
    <p class="note">${KINDS[data.kind]?.[2]} ${plural(data.completions.length, 'answer')}, reward ${spread(data)}. <a
      href=${href('prompt', { run, prompt: data.prompt_id }, query)}>This prompt in other steps</a></p>
    <section class="card" aria-label="From answers to the gradient"><${GrpoPicture} group=${data} marked=${marked}
      onMark=${mark} onOpen=${openAnswer} /></section>
    <${Section} title="Prompt"><${PromptText} prompt=${data.prompt} /><${Columns} columns=${data.columns} /><//>
    <${Answers} run=${run} data=${data} marked=${marked} onMark=${mark} />
    <${Section} title="Numbers"><${Numbers} run=${run} data=${data} /><//>
  `;
}

/** Left and right lead to the same place of the neighbouring steps. */
function useNeighbourSteps(run, step, query) {
  const [around, setAround] = useState({ previous: null, next: null });
  const round = useResource(`runs/${join(run)}/steps/${join(step)}/groups`, { per_page: 1, split: query.split });
  useEffect(() => {
    if (round.data) setAround(round.data);
  }, [round.data]);
  const open = (target) => target !== null && go(href('step', { run, step: target }, query));
  useKeys({ ArrowLeft: () => open(around.previous), ArrowRight: () => open(around.next) });
}

/** @param {{columns: any}} props */
const Columns = ({ columns }) =>
  columns && columns.text && columns.text !== '{}'
    ? html`<details class="columns"><summary>Other columns of this row</summary><pre><${Untrusted}
      text=${columns.text} /></pre></details>`
    : null;

/** The answers side by side; with a base, what is new against it is marked. */
function Answers({ run, data, marked, onMark }) {
  const [isDiff, setDiff] = useState(false);
  const rewards = data.completions.map((answer) => answer.reward).filter((reward) => reward !== null);
  const [low, high] = [Math.min(0, ...rewards), Math.max(0, ...rewards)];
  const base = data.completions[marked];
  useEffect(() => {
    const picture = document.querySelector('.grpo');
    // While the picture is in sight it shows the mark: do not pull it away.
    if (picture && picture.getBoundingClientRect().bottom < 160)
      document.getElementById(`answer-${marked}`)?.scrollIntoView({ block: 'nearest' });
  }, [marked]);
  return html`
    <${Section} title="Answers" aside=${html`<${Choice} label="Show" value=${isDiff ? 'diff' : 'text'}
      options=${[
        ['text', 'as written'],
        ['diff', `what differs from answer ${base.sample}`],
      ]} onPick=${(value) => setDiff(value === 'diff')} />`}>
      <ol class="answers">
        ${data.completions.map(
          (answer, i) => html`
            <li id=${`answer-${i}`} class=${`card answer ${i === marked ? 'is-marked' : ''}`}
              aria-current=${i === marked ? 'true' : null}>
              <div class="answer-head">
                <button type="button" class="quiet answer-mark" aria-label=${`Mark answer ${answer.sample}`}
                  onClick=${() => onMark(i)}>answer ${answer.sample}</button>
                <span><span class="muted">reward</span> <b>${short(answer.reward)}</b></span>
                <${Advantage} value=${answer.advantage} />
                <${Reason} reason=${answer.finish_reason} />
              </div>
              <${Bar} value=${answer.reward} low=${low} high=${high} label=${`reward ${short(answer.reward)}`} />
              <div class="terms">${answer.terms.map((term) => html`<${Term} ...${term} />`)}</div>
              <pre class="answer-text" tabindex="0" aria-label=${`Text of answer ${answer.sample}`}><${Body}
                answer=${answer} base=${isDiff && i !== marked ? base : null} /></pre>
              <p class="answer-links">
                <a href=${href('completion', { run, id: answer.id })}>Open answer ${answer.sample}</a>
                ${answer.has_tokens && html`<a href=${href('tokens', { run, id: answer.id })}>Tokens</a>`}
                <span class="muted answer-size">${plural(answer.n_completion, 'token')}</span>
              </p>
            </li>
          `,
        )}
      </ol>
    <//>
  `;
}

/** @param {{answer: any, base: any}} props */
function Body({ answer, base }) {
  const { text, num_chars: numChars } = answer.completion;
  const shown = text.slice(0, SHOWN_CHARS);
  const rest =
    numChars > SHOWN_CHARS
      ? html`<span
    class="muted"> ... ${short(numChars)} characters in all</span>`
      : null;
  if (!text) return html`<span class="muted">(empty)</span>`;
  if (!base) return html`<${Untrusted} text=${shown} />${rest}`;
  const parts = newParts(base.completion.text.slice(0, SHOWN_CHARS), shown);
  return html`<bdi class="untrusted"
    dir="auto">${parts.map((part) => (part.isNew ? html`<mark>${markedText(part.text)}</mark>` : markedText(part.text)))}</bdi>${rest}`;
}

/** @param {{run: string, data: any}} props */
function Numbers({ run, data }) {
  const columns = [
    'answer',
    ...['reward', ...data.reward_names, 'advantage', 'tokens', 'entropy', 'sampler log-prob', 'seconds'].map(
      (label) => ({ label, numeric: true }),
    ),
    'ended',
  ];
  const rows = data.completions.map((answer) => [
    html`<a href=${href('completion', { run, id: answer.id })}>answer ${answer.sample}</a>`,
    exact(answer.reward, 4),
    ...answer.terms.map((term) => (term.status === 'ok' ? exact(term.value, 4) : flat(term.status))),
    exact(answer.advantage, 4),
    exact(answer.n_completion),
    exact(answer.entropy_mean, 4),
    exact(answer.sampler_logprob_mean, 4),
    exact(answer.seconds, 3),
    flat(answer.finish_reason),
  ]);
  return html`<${DataTable}
    caption=${`Answers of group ${data.group_id}: mean ${short(data.mean)}, std ${short(data.std)}`} columns=${columns}
    rows=${rows} perPage=${64} />`;
}
