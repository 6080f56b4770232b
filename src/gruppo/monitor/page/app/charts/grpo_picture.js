/**
 * The GRPO picture of one group, from its own numbers: prompt, answers, rewards, mean and std, advantages, loss.
 *
 * The table below it (in the Group view) says the same in cells; screen readers get that one.
 */
import { percent, short, signed } from '../format.js';
import { html, useState } from '../html.js';
import { useWidth } from '../hooks.js';
import { promptLine, sideOf } from '../parts/group_parts.js';
import { cut, flat } from '../untrusted.js';
import { arrow } from '../words.js';
import { ROW, curve, fits, layoutOf, middleCut, ruleOf, scaleOf, wrap } from './grpo_layout.js';

/** @param {{group: any, marked: number, onMark: (i: number) => void, onOpen: (i: number) => void}} props */
export function GrpoPicture({ group, marked, onMark, onOpen }) {
  const [box, width] = useWidth();
  return html`<div class="grpo"
    ref=${box}>${width > 0 && html`<${Drawing} ...${{ group, width, marked, onMark, onOpen }} />`}</div>`;
}

/** @param {any} props */
function Drawing({ group, width, marked, onMark, onOpen }) {
  const [hovered, setHovered] = useState(-1);
  const at = layoutOf(width, group.completions.length);
  const rule = ruleOf(group);
  const shown = hovered >= 0 ? hovered : marked;
  const parts = { group, at, rule, shown };
  return html`
    <svg width=${at.width} height=${at.height} viewBox=${`0 0 ${at.width} ${at.height}`} class="grpo-svg" role="img"
      aria-label=${`How this group became a gradient: ${group.completions.length} answers, mean reward ${short(group.mean)}, std ${short(group.std)}. The same numbers are in the table.`}>
      <${Edges} ...${parts} />
      <${PromptBox} ...${parts} />
      <${Heads} ...${parts} />
      <${Spread} ...${parts} />
      ${group.completions.map(
        (answer, i) => html`
          <g class=${`grpo-row ${i === shown ? 'is-marked' : ''}`} onMouseEnter=${() => setHovered(i)}
            onMouseLeave=${() => setHovered(-1)}
            onClick=${() => (i === marked ? onOpen(i) : onMark(i))}>
            <rect class="hit" x=${at.answers.x} y=${at.rowY(i) - ROW / 2 + 1}
              width=${at.advantages.x + at.advantages.width - at.answers.x} height=${ROW - 2} rx="5" />
            <${Answer} ...${parts} answer=${answer} i=${i} /><${Reward} ...${parts} answer=${answer} i=${i} /><${Push}
              ...${parts} answer=${answer} i=${i} />
          </g>
        `,
      )}
      <${Learn} ...${parts} />
    </svg>
  `;
}

/** Titles of the five columns. */
function Heads({ group, at, rule }) {
  const heads = [
    [at.prompt, '1 Prompt', ''],
    [at.answers, `2 Sample ${group.completions.length}`, at.isNarrow ? '' : 'answers of one prompt'],
    [at.rewards, '3 Score', at.isNarrow ? 'reward' : 'reward of each answer'],
    [at.advantages, '4 Compare', at.isNarrow ? 'advantage' : rule.holds ? rule.formula : 'advantage, as recorded'],
    [at.learn, '5 Learn', ''],
  ];
  return heads.map(([box, title, note], i) => {
    const y = at.isNarrow && i === 0 ? 22 : box.y - (at.isNarrow ? 38 : 40);
    return html`<text x=${box.x} y=${y}
      class="grpo-head">${title}</text>${note && html`<text x=${box.x} y=${y + 17} class="grpo-note">${note}</text>`}`;
  });
}

function PromptBox({ group, at }) {
  const { x, y, width, height } = at.prompt;
  const numLines = Math.max(1, Math.floor((height - 22) / 17));
  const lines = wrap(cut(promptLine(group.prompt), 600), fits(width - 20), numLines);
  return html`
    <rect x=${x} y=${y} width=${width} height=${height} rx="9" class="grpo-box" />
    ${lines.map((line, i) => html`<text x=${x + 10} y=${y + 23 + i * 17} class="grpo-text">${line}</text>`)}
  `;
}

/** From the prompt to its answers, and from the advantages to the loss: colour and thickness say which way and how much. */
function Edges({ group, at, shown }) {
  const { prompt, answers, advantages, learn } = at;
  const most = Math.max(1e-9, ...group.completions.map(({ advantage }) => Math.abs(advantage ?? 0)));
  return group.completions.map(({ advantage }, i) => {
    const y = at.rowY(i);
    const mark = i === shown ? 'is-marked' : '';
    const fan = at.isNarrow
      ? i === 0 && curve(prompt.x + 24, prompt.y + prompt.height, prompt.x + 24, answers.y - 56, true)
      : curve(prompt.x + prompt.width, prompt.y + prompt.height / 2, answers.x, y);
    const sink =
      !at.isNarrow && advantage ? curve(advantages.x + advantages.width, y, learn.x, learn.y + learn.height / 2) : null;
    return html`
      ${fan && html`<path d=${fan} class=${`edge ${mark}`} />`}
      ${
        sink &&
        html`<path d=${sink} class=${`edge ${sideOf(advantage)} ${mark}`}
        stroke-width=${1 + (3 * Math.abs(advantage)) / most} />`
      }
    `;
  });
}

function Answer({ at, answer, i }) {
  const { x, width } = at.answers;
  const y = at.rowY(i);
  const isCut = answer.finish_reason !== 'stop';
  const text = cut(answer.completion.text, 4000) || '(empty)';
  const room = fits(width - 34 - (isCut ? 16 : 0));
  return html`
    <text x=${x + 8} y=${y + 4} class="grpo-index">${answer.sample}</text>
    <text x=${x + 28} y=${y + 4} class="grpo-text mono">${middleCut(text, room)}</text>
    ${
      isCut &&
      html`<text x=${x + width - 4} y=${y + 4} text-anchor="end" class="grpo-cut">
      <title>${flat(answer.finish_reason)}</title>✂</text>`
    }
  `;
}

/** The mean as a line through all rows, one std to each side as a shade. */
function Spread({ group, at }) {
  const known = group.completions.map(({ reward }) => reward).filter((reward) => reward !== null);
  if (group.mean === null || known.length === 0) return null;
  const x = scaleOf([...known], at.rewards);
  const clamp = (value) => Math.min(Math.max(value, at.rewards.x), at.rewards.x + at.rewards.width);
  const [top, bottom] = [at.rowY(0) - ROW / 2, at.rowY(group.completions.length - 1) + ROW / 2];
  const [left, right] = [clamp(x(group.mean - (group.std ?? 0))), clamp(x(group.mean + (group.std ?? 0)))];
  const words = [`mean ${short(group.mean)}`, `std ${short(group.std)}`];
  const middle = at.rewards.x + at.rewards.width / 2;
  return html`
    <rect x=${left} y=${top} width=${Math.max(right - left, 0)} height=${bottom - top} class="grpo-std" />
    <line x1=${x(group.mean)} x2=${x(group.mean)} y1=${top - 4} y2=${bottom + 4} class="grpo-mean" />
    ${
      at.isNarrow
        ? words.map(
            (word, i) => html`<text x=${middle} y=${bottom + 18 + i * 15} text-anchor="middle"
        class="grpo-note strong">${word}</text>`,
          )
        : html`<text x=${middle} y=${bottom + 22} text-anchor="middle"
        class="grpo-note strong">${words.join('   ')}</text>`
    }
  `;
}

function Reward({ group, at, answer, i }) {
  const known = group.completions.map(({ reward }) => reward).filter((reward) => reward !== null);
  const y = at.rowY(i);
  const { x, width } = at.rewards;
  if (answer.reward === null)
    return html`<text x=${x + width / 2} y=${y + 4} text-anchor="middle"
    class="grpo-cut">no reward</text>`;
  const cx = scaleOf(known, at.rewards)(answer.reward);
  const isRight = cx > x + width / 2;
  return html`
    <line x1=${x + 4} x2=${x + width - 4} y1=${y} y2=${y} class="grpo-rail" />
    <circle cx=${cx} cy=${y} r="6" class=${`grpo-dot ${sideOf(answer.reward - group.mean)}`} />
    <text x=${isRight ? cx - 11 : cx + 11} y=${y + 4} text-anchor=${isRight ? 'end' : 'start'}
      class="grpo-number">${short(answer.reward)}</text>
  `;
}

function Push({ group, at, answer, i }) {
  const values = group.completions.map(({ advantage }) => advantage ?? 0);
  const bars = at.isNarrow ? { ...at.advantages, width: at.advantages.width - 64 } : at.advantages;
  const x = scaleOf(values, bars, !at.isNarrow, true);
  const y = at.rowY(i);
  const [from, to] = [x(0), x(answer.advantage ?? 0)].sort((a, b) => a - b);
  const isUp = (answer.advantage ?? 0) > 0;
  const place = at.isNarrow
    ? { x: at.advantages.x + at.advantages.width, 'text-anchor': 'end' }
    : { x: isUp ? x(0) - 5 : x(0) + 5, 'text-anchor': isUp ? 'end' : 'start' };
  return html`
    <line x1=${x(0)} x2=${x(0)} y1=${y - ROW / 2} y2=${y + ROW / 2} class="grpo-zero" />
    <rect x=${from} y=${y - 7} width=${Math.max(to - from, 1.5)} height="14" rx="2"
      class=${`grpo-push ${sideOf(answer.advantage)}`} />
    <text ...${place} y=${y + 4} class="grpo-number">${arrow(answer.advantage)} ${signed(answer.advantage)}</text>
  `;
}

/** The last box: what the optimizer made of it. */
function Learn({ group, at, rule, shown }) {
  const { x, y, width, height } = at.learn;
  const { loss } = group;
  const numUp = group.completions.filter(({ advantage }) => advantage > 1e-9).length;
  const numDown = group.completions.filter(({ advantage }) => advantage < -1e-9).length;
  const answer = group.completions[shown];
  const lines = [
    [`▲ ${numUp} made more likely`, 'up-text'],
    [`▼ ${numDown} made less likely`, 'down-text'],
    ...lessons(loss).map((line) => [line, '']),
  ];
  const isTied = numUp + numDown === 0;
  return html`
    <rect x=${x} y=${y} width=${width} height=${height} rx="9" class="grpo-box" />
    ${(isTied ? [['No difference, no gradient', 'strong'], ...lines.slice(2)] : lines).map(
      ([line, kind], i) => html`<text x=${x + 10} y=${y + 24 + i * 19} class=${`grpo-text ${kind}`}>${line}</text>`,
    )}
    ${
      answer &&
      rule.holds &&
      answer.reward !== null &&
      html`<text x=${at.isNarrow ? x : at.width - 1}
      y=${at.isNarrow ? y - 8 : y + height + 22} text-anchor=${at.isNarrow ? 'start' : 'end'} class="grpo-note">
      ${`answer ${answer.sample}: ${sum(group, rule, answer)}`}
    </text>`
    }
  `;
}

/** The formula with this answer's numbers. */
function sum(group, rule, answer) {
  const mean = group.mean < 0 ? `(${short(group.mean)})` : short(group.mean);
  const difference = `${short(answer.reward)} − ${mean}`;
  return rule.formula.includes('/')
    ? `(${difference}) / ${short(group.std)} = ${signed(answer.advantage)}`
    : `${difference} = ${signed(answer.advantage)}`;
}

/** @param {any} loss @returns {string[]} */
function lessons(loss) {
  if (!loss) return ['loss not recorded'];
  const clip = loss['clip_ratio/region_mean'];
  return [
    'the whole step:',
    `loss ${cut(loss.loss_type ?? '', 12)}  ${short(loss.loss)}`,
    loss.beta ? `KL ${short(loss.kl)} × β ${short(loss.beta)}` : 'no KL term (β 0)',
    `clip ±${short(loss.epsilon)}${clip === null || clip === undefined ? '' : `, ${percent(clip)} of tokens`}`,
    `gradient norm ${short(loss.grad_norm)}`,
  ];
}
