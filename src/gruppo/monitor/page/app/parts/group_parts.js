/**
 * Small pictures of a group: its kind, the spread of its rewards, one answer's advantage.
 */
import { short, signed } from '../format.js';
import { html } from '../html.js';
import { Untrusted, flat } from '../untrusted.js';
import { KINDS, REASONS, STATUSES, arrow } from '../words.js';

/** @param {{kind: string, bare?: boolean}} props */
export function Kind({ kind, bare = false }) {
  const [glyph, word, words] = KINDS[kind] ?? ['?', flat(kind), ''];
  return html`<span class=${`kind kind-${kind}`} title=${words}><span class="glyph"
    aria-hidden="true">${glyph}</span>${bare ? html`<span class="sr-only">${word}</span>` : word}</span>`;
}

/** @param {{value: number|null}} props */
export const Advantage = ({ value }) => html`
  <span class=${`advantage ${sideOf(value)}`}
    title="advantage: above 0 this answer is made more likely, below 0 less likely">
    <span aria-hidden="true">${arrow(value)}</span> ${signed(value)}
  </span>
`;

/** @param {number|null|undefined} value */
export const sideOf = (value) => (!value ? 'level-side' : value > 0 ? 'up-side' : 'down-side');

/** @param {{reason: string}} props */
export const Reason = ({ reason }) => html`
  <span class=${`chip reason-${REASONS[reason] ? reason : 'other'}`}
    title=${REASONS[reason] ?? ''}>${reason === 'stop' ? '■' : reason === 'length' ? '✂' : '✕'} ${reason === 'length' ? 'cut off' : flat(reason)}</span>
`;

/** The reward of one function: value, or why there is none. @param {{name: string, value: number|null, status: string, weight?: number|null}} props */
export const Term = ({ name, value, status, weight }) => html`
  <span class=${`term ${status === 'ok' ? '' : 'term-fault'}`} title=${STATUSES[status] ?? ''}>
    <span class="term-name"><${Untrusted} text=${name} />
      </span> <b>${status === 'ok' ? short(value) : flat(status)}</b>${
        weight !== null && weight !== undefined && weight !== 1
          ? html`<span
        class="muted"> × ${short(weight)}</span>`
          : ''
      }
  </span>
`;

/**
 * Rewards of a group as dots on the round's range, with the mean as a bar. Equal rewards stack.
 * @param {{rewards: (number|null)[], low: number, high: number, mean: number|null}} props
 */
export function RewardDots({ rewards, low, high, mean }) {
  const known = rewards.filter((reward) => reward !== null);
  const span = high > low ? high - low : 1;
  const x = (value) => 6 + (148 * (value - low)) / span;
  /** @type {Map<number, number>} */
  const stacked = new Map();
  const label = known.length ? `rewards ${known.map(short).join(', ')}, mean ${short(mean)}` : 'no rewards';
  return html`
    <svg class="dots" viewBox="0 0 160 34" width="160" height="34" role="img" aria-label=${label}>
      <line x1="6" x2="154" y1="29" y2="29" class="axis" />
      ${mean !== null && html`<line x1=${x(mean)} x2=${x(mean)} y1="4" y2="32" class="mean" />`}
      ${known.map((reward) => {
        const place = Math.round(x(reward) / 4);
        const height = stacked.get(place) ?? 0;
        stacked.set(place, height + 1);
        return html`<circle cx=${x(reward)} cy=${25 - Math.min(height, 7) * 3} r="3.2"
          class=${mean !== null && reward >= mean ? 'dot-up' : 'dot-down'} />`;
      })}
    </svg>
  `;
}

/** A value as a bar of the range. @param {{value: number|null, low: number, high: number, label: string}} props */
export function Bar({ value, low, high, label }) {
  const zero = Math.max(0, Math.min(1, (0 - low) / (high - low || 1)));
  const at = value === null ? zero : (value - low) / (high - low || 1);
  const [from, to] = at < zero ? [at, zero] : [zero, at];
  return html`
    <svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label=${label}>
      <rect x="0" y="0" width="100" height="8" class="bar-bed" />
      <rect x=${from * 100} y="0" width=${Math.max((to - from) * 100, 0.8)} height="8"
        class=${at < zero ? 'bar-down' : 'bar-up'} />
    </svg>
  `;
}

/** @param {any} prompt {format, text}: messages become one line per message @returns {{role: string|null, text: string}[]} */
export function messagesOf(prompt) {
  if (!prompt) return [];
  if (prompt.format !== 'messages') return [{ role: null, text: prompt.text }];
  try {
    return JSON.parse(prompt.text).map((message) => ({
      role: String(message.role ?? ''),
      text: typeof message.content === 'string' ? message.content : JSON.stringify(message.content ?? message, null, 1),
    }));
  } catch {
    return [{ role: null, text: prompt.text }]; // cut in the middle: show the JSON as it is
  }
}

/** The prompt in one line. @param {any} prompt */
export const promptLine = (prompt) => {
  const messages = messagesOf(prompt);
  return messages.length ? messages[messages.length - 1].text : '';
};

/** @param {any} group */
export const spread = (group) => `${short(group.mean)} ± ${short(group.std)}`;
