/**
 * Tokens: one answer token by token, coloured by what the update does or what went wrong there.
 *
 * Arrows move through the tokens, w jumps to the strongest ones; sign and size are also said by underline and words.
 */
import { join } from '../api.js';
import { exact, short } from '../format.js';
import { html, useEffect, useMemo, useRef, useState } from '../html.js';
import { useKept, useResource, useTitle } from '../hooks.js';
import { useKeys } from '../keys.js';
import { Choice, Crumbs, Empty, Fact, Pager, Section, Stepper, waiting } from '../parts/basics.js';
import { Advantage } from '../parts/group_parts.js';
import { DataTable } from '../parts/table.js';
import { go, href } from '../routes.js';
import { logprobOf, modesFor, shades, tokenTexts } from '../token_modes.js';
import { Untrusted, flat } from '../untrusted.js';
import { crumbsOf } from './completion.js';

const PER_PAGE = 1000;
/** How many tokens `w` goes through before it starts again. */
const NUM_STRONGEST = 20;

/** @param {import('./index.js').ViewProps} props */
export function Tokens({ run, summary, route }) {
  const { id } = route.params;
  const page = Number(route.query.page ?? 1);
  const answer = useResource(`runs/${join(run)}/rollouts/${join(id)}`);
  const { data } = answer;
  const path = data?.has_tokens ? `runs/${join(run)}/tokens/${join(id)}` : null;
  const tokens = useResource(path, { offset: (page - 1) * PER_PAGE, limit: PER_PAGE });
  useTitle(data ? `${summary.name}: tokens of answer ${data.sample}` : 'Tokens');
  const open = (target) => target && go(href('tokens', { run, id: target }));
  useKeys({ j: () => open(data?.next), k: () => open(data?.previous), u: () => go(href('completion', { run, id })) });
  if (!data) return html`<h1>Tokens</h1>${waiting(answer)}`;
  return html`
    <${Crumbs}
      crumbs=${[...crumbsOf(data, run), [href('completion', { run, id }), `Answer ${data.sample}`], [null, 'Tokens']]} />
    <div class="section-head">
      <h1>Tokens of answer ${data.sample}</h1>
      <${Stepper} previous=${data.previous} next=${data.next} onOpen=${open} labels=${['answer before', 'next answer']}
        keys=${['k', 'j']} />
    </div>
    <dl class="facts">
      <${Fact} label="Reward" value=${short(data.reward)} />
      <${Fact} label="Advantage" value=${html`<${Advantage} value=${data.advantage} />`} />
      <${Fact} label="Tokens" value=${short(data.n_completion)} />
    </dl>
    ${
      path === null
        ? html`<${NoTokens} run=${run} data=${data} />`
        : tokens.data
          ? html`<${TokenText}
      data=${tokens.data} />`
          : waiting(tokens)
    }
    ${
      tokens.data &&
      html`<${Pager} page=${page} numPages=${Math.ceil(tokens.data.num_tokens / PER_PAGE)}
      onPage=${(next) => go(href('tokens', { run, id }, { page: next }))} label="pages of tokens" />`
    }
  `;
}

/** Without a record there is still the answer, and a way to others. */
const NoTokens = ({ run, data }) => html`
  <${Empty}
    title="No token record for this answer.">Numbers per token are kept for some answers of each round only, or not at all if token records are off.<//>
  <${Section} title="The answer as text"><pre class="long-text" tabindex="0" aria-label="The answer"><${Untrusted}
    text=${data.completion.text} /></pre>
    <p><a href=${href('completion', { run, id: data.id })}>Open the answer</a></p><//>
`;

/** @param {{data: any}} props */
function TokenText({ data }) {
  const modes = modesFor(data.columns);
  const [kept, setMode] = useKept('token-mode', 'push');
  const mode = modes.find((each) => each.id === kept) ?? modes[0];
  const texts = useMemo(() => tokenTexts(data), [data]);
  const advantage = data.advantage ?? 0;
  const { values, levels, top } = useMemo(
    () => (mode ? shades(mode, data.columns, advantage, texts.length) : { values: [], levels: [], top: 0 }),
    [data, mode],
  );
  const [at, setAt] = useState(0);
  const [pinned, setPinned] = useState(-1);
  const box = useRef(null);
  const visited = useRef(false);
  const shown = pinned >= 0 ? pinned : at;
  const moveTo = (i) => setAt(Math.min(Math.max(i, 0), texts.length - 1));
  const worst = useMemo(() => order(values), [values]);
  const toWorst = () => {
    const rank = worst.indexOf(at);
    moveTo(worst[rank < NUM_STRONGEST - 1 && visited.current ? rank + 1 : 0] ?? 0);
    visited.current = true;
  };
  useKeys({ w: toWorst });
  useEffect(() => setAt(0), [data]);
  useEffect(() => {
    if (document.activeElement === box.current)
      document.getElementById(`token-${at}`)?.scrollIntoView({ block: 'nearest' });
  }, [at]);
  const pick = (i) => {
    visited.current = false;
    moveTo(i);
  };
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -12, ArrowDown: 12 };
  const onKeyDown = (event) => {
    const delta = steps[event.key];
    if (event.key === 'w') toWorst();
    else if (delta) pick(at + delta);
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  if (!mode) return html`<${Empty} title="The token record of this answer has no numbers." />`;
  return html`
    <div class="toolbar">
      <${Choice} label="Colour by" value=${mode.id} options=${modes.map((each) => [each.id, each.label])}
        onPick=${setMode} />
      <button type="button" onClick=${toWorst}>Next strongest <kbd>w</kbd></button>
    </div>
    <p class="note">${mode.words}</p>
    ${top > 0 ? html`<${Scale} mode=${mode} top=${top} />` : html`<p class="note"><b>0 for every token here.</b> ${mode.zero ?? ''}</p>`}
    <div class="token-layout">
      <div class="token-text mono" tabindex="0" role="group" aria-roledescription="token text"
        aria-label="Tokens. Arrow keys move, w jumps to the strongest." data-own-keys ref=${box} onKeyDown=${onKeyDown}
        onMouseLeave=${() => setPinned(-1)}>
        ${texts.map(
          (text, i) => html`<span id=${`token-${i}`}
            class=${tokenClass(values[i], levels[i], data.columns, i, i === at, text)}
            onMouseEnter=${() => setPinned(i)} onClick=${() => pick(i)}><${Untrusted} text=${text} raw="ends" /></span>`,
        )}
      </div>
      <${Detail} data=${data} texts=${texts} i=${shown} mode=${mode} value=${values[shown]} />
    </div>
    <details class="columns"><summary>The same as a table</summary><${TokenTable} data=${data} texts=${texts}
      mode=${mode} values=${values} /></details>
  `;
}

/** Positions from the largest value down. @param {(number|null)[]} values */
const order = (values) =>
  values
    .map((value, i) => [Math.abs(value ?? 0), i])
    .sort((a, b) => b[0] - a[0])
    .map(([, i]) => i);

/** @param {number|null} value @param {number} level @param {Record<string, any[]>} columns @param {number} i @param {boolean} isAt @param {string} text */
function tokenClass(value, level, columns, i, isAt, text) {
  const side = value === null ? 'masked' : value < 0 ? 'neg' : 'pos';
  const bare = text === '' ? 'is-bare' : '';
  return `tok ${side}${level} ${bare} ${columns.clip?.[i] ? 'is-clipped' : ''} ${isAt ? 'is-at' : ''}`;
}

/** @param {{mode: any, top: number}} props */
const Scale = ({ mode, top }) => html`
  <p class="scale">
    ${
      mode.isSigned
        ? html`<span class="tok neg4">−${short(top)}</span><span class="tok neg2">▼ dashed: below 0</span><span
        class="tok pos0">0</span><span class="tok pos2">▲ solid: above 0</span><span
        class="tok pos4">+${short(top)}</span>`
        : html`<span class="tok pos0">0</span><span class="tok pos1"> </span><span class="tok pos2"> </span><span
        class="tok pos3"> </span><span class="tok pos4">${short(top)}</span>`
    }
    <span class="tok masked">grey: not trained</span>
    <span class="tok pos0 is-clipped">boxed: clipped</span>
  </p>
`;

/** @param {any} props */
function Detail({ data, texts, i, mode, value }) {
  const { columns } = data;
  const logprob = logprobOf(columns, i);
  const rows = [
    ['position', exact(data.offset + i)],
    ['id', exact(columns.completion_ids?.[i])],
    [mode.label, mode.isSigned && value > 0 ? `+${exact(value, 4)}` : exact(value, 4)],
    ['probability', logprob === null ? '–' : short(Math.exp(logprob))],
    ['log-prob (trainer)', exact(logprob, 4)],
    ['log-prob (sampler)', exact(columns.logp_infer?.[i], 4)],
    ['sampler gap', exact(columns.delta?.[i], 4)],
    ['policy − reference', exact(columns.delta_ref?.[i], 4)],
    ['entropy', exact(columns.entropy?.[i], 4)],
    ['ratio', exact(columns.ratio?.[i], 4)],
    ['clipped', columns.clip ? (columns.clip[i] ? 'yes' : 'no') : '–'],
    ['trained', columns.mask ? (columns.mask[i] ? 'yes' : 'no') : '–'],
  ];
  return html`
    <aside class="card token-detail" aria-label="The token at the cursor">
      ${
        texts[i] === ''
          ? html`<p class="token-name">no text of its own <span class="muted">a special token, such as the end; or the
            rest of a character</span></p>`
          : html`<p class="token-name mono">“<${Untrusted} text=${texts[i] ?? ''} raw />”</p>`
      }
      <dl
        class="pairs">${rows
          .filter(([, text]) => text !== '–')
          .map(
            ([name, text]) => html`<div><dt>${name}</dt>
        <dd>${text}</dd></div>`,
          )}</dl>
      <p class="sr-only"
        aria-live="polite">${`token ${data.offset + i}: ${flat(texts[i] ?? '')}, ${mode.label} ${short(value)}`}</p>
    </aside>
  `;
}

/** @param {any} props */
function TokenTable({ data, texts, mode, values }) {
  const names = ['completion_ids', 'logp_infer', 'delta', 'delta_ref', 'entropy', 'ratio', 'clip', 'mask'].filter(
    (name) => data.columns[name],
  );
  const columns = [
    { label: 'position', numeric: true },
    'token',
    ...[mode.label, ...names].map((label) => ({ label, numeric: true })),
  ];
  const rows = texts.map((text, i) => [
    data.offset + i,
    html`<${Untrusted}
    text=${text} raw />`,
    exact(values[i]),
    ...names.map((name) => exact(data.columns[name][i])),
  ]);
  return html`<${DataTable} caption="Tokens" columns=${columns} rows=${rows} perPage=${50} hidden />`;
}
