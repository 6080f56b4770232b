/**
 * Discarded: answers that were paid for and taught nothing, sorted by the reason.
 */
import { join } from '../api.js';
import { plural, short } from '../format.js';
import { html } from '../html.js';
import { useResource, useTitle } from '../hooks.js';
import { Choice, Empty, Pager, Select, waiting } from '../parts/basics.js';
import { Advantage, Reason, Term, promptLine } from '../parts/group_parts.js';
import { go, href } from '../routes.js';
import { Untrusted, cut } from '../untrusted.js';

/** @typedef {{id: string, label: string, words: string, filter: string[], when?: (summary: any) => boolean}} Cause */

/** @type {Cause[]} */
const CAUSES = [
  {
    id: 'flat',
    label: 'No difference',
    words:
      'All answers of the group got the same reward: the advantage is 0. Filter prompts by pass rate, or give partial credit.',
    filter: ['group_std:lt:0.000001'],
  },
  {
    id: 'cut',
    label: 'Cut off',
    words: 'Answers that hit max_completion_length. With mask_truncated_completions they do not train.',
    filter: ['finish_reason:eq:length'],
  },
  {
    id: 'unscored',
    label: 'No reward',
    words: 'Every reward function abstained or failed on these.',
    filter: ['reward:null:true'],
  },
  {
    id: 'abort',
    label: 'Given up',
    words: 'The engine stopped these before they ended.',
    filter: ['finish_reason:eq:abort'],
  },
  {
    id: 'dropped',
    label: 'Dropped',
    words: 'The trainer left these out and said why.',
    filter: ['drop_reason:null:false'],
  },
];

/** @param {import('./index.js').ViewProps} props */
export function Discarded({ run, summary, route, versions }) {
  const { reason = 'flat', page = '1', range = 'latest' } = route.query;
  const cause = CAUSES.find((each) => each.id === reason) ?? CAUSES[0];
  const { last } = summary.rollouts;
  const span = range === 'latest' || last === null ? {} : { from: Math.max(1, last - Number(range) + 1), to: last };
  const rows = useResource(
    `runs/${join(run)}/rollouts`,
    { split: 'train', filter: cause.filter, sort: '-step', page, per_page: 25, ...span },
    versions.rollouts,
  );
  useTitle(`${summary.name}: discarded`);
  const open = (query) => go(href('discarded', { run }, { ...route.query, ...query }), true);
  return html`
    <h1>Discarded</h1>
    <div class="toolbar">
      <${Choice} label="Reason" value=${cause.id} options=${CAUSES.map((each) => [each.id, each.label])}
        onPick=${(id) => open({ reason: id, page: 1 })} />
      <${Select} label="In" value=${range}
        options=${[
          ['latest', 'the latest round'],
          ['20', 'the last 20 steps'],
          ['60', 'the last 60 steps'],
        ]}
        onPick=${(value) => open({ range: value, page: 1 })} />
    </div>
    <p class="note">${cause.words}</p>
    <${Rows} run=${run} rows=${rows} cause=${cause} onPage=${(next) => open({ page: next })} />
  `;
}

/** A run recorded before a column existed has no such rows. @param {any} error */
const lacksColumn = (error) => error && error.status === 422;

/** @param {{run: string, rows: import('../hooks.js').Resource, cause: Cause, onPage: (page: number) => void}} props */
function Rows({ run, rows, cause, onPage }) {
  if (lacksColumn(rows.error)) return html`<${Empty} title="This run does not record that.">${rows.error?.message}<//>`;
  if (!rows.data) return waiting(rows);
  const { data } = rows;
  if (data.num_rows === 0) return html`<${Empty} title="None.">No answer of these steps was lost for this reason.<//>`;
  return html`
    <p class="muted">${plural(data.num_rows, 'answer')}, ${data.from === data.to ? `step ${data.to}` : `steps ${data.from} to ${data.to}`}</p>
    <ol class="row-list">
      ${data.rows.map(
        (row) => html`
          <li class="card row-card">
            <p class="finding-head">
              <a
                href=${href('completion', { run, id: row.id })}>step ${row.step}, group ${row.group_id}, answer ${row.sample}</a>
              <span><span class="muted">reward</span> <b>${short(row.reward)}</b></span>
              <span class="muted">advantage</span> <${Advantage} value=${row.advantage} /> <${Reason}
                reason=${row.finish_reason} />
              ${Object.keys(row.terms).map(
                (name) => html`<${Term} name=${name} value=${row.terms[name]}
                status=${row.statuses[name] ?? 'ok'} />`,
              )}
              ${
                cause.id === 'dropped' &&
                row.drop_reason &&
                html`<span class="chip"><${Untrusted}
                text=${row.drop_reason} /></span>`
              }
            </p>
            <p class="preview"><span class="muted">prompt</span> <${Untrusted}
              text=${cut(promptLine(row.prompt), 140)} /></p>
            <p class="preview"><span class="muted">answer</span> <${Untrusted}
              text=${cut(row.completion.text, 200) || '(empty)'} /></p>
          </li>
        `,
      )}
    </ol>
    <${Pager} page=${data.page} numPages=${data.num_pages} onPage=${onPage} label="pages of answers" />
  `;
}
