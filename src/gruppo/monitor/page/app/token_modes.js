/**
 * What the colour behind a token can mean, each computed from the recorded columns. Pure.
 *
 * @typedef {{
 *   id: string, label: string, words: string, isSigned: boolean, zero?: string,
 *   of: (columns: Record<string, (number|null)[]>, i: number, advantage: number) => number|null,
 *   needs: string[]
 * }} TokenMode
 */

const get = (columns, name, i) => columns[name]?.[i] ?? null;

/** Log-prob of the trainer: the sampler's plus the gap, which is stored apart because float16 would swallow it. */
export const logprobOf = (columns, i) => {
  const sampler = get(columns, 'logp_infer', i);
  return sampler === null ? null : sampler + (get(columns, 'delta', i) ?? 0);
};

/** @type {TokenMode[]} */
export const MODES = [
  {
    id: 'push',
    zero: 'The advantage of this answer is 0, or every token was certain.',
    label: 'push',
    words:
      'Advantage × (1 − probability): how hard the update pushes this token. A token that was certain anyway is hardly moved.',
    isSigned: true,
    needs: ['logp_infer'],
    of: (columns, i, advantage) => {
      const logprob = logprobOf(columns, i);
      return logprob === null ? null : advantage * (1 - Math.exp(Math.min(logprob, 0)));
    },
  },
  {
    id: 'ratio',
    zero: 'The ratio was 1 (on-policy: the tokens were sampled by the policy that was updated), or the advantage is 0.',
    label: 'advantage × (ratio − 1)',
    words: 'How far the policy has already moved where the advantage wants it: above 0 with it, below 0 against it.',
    isSigned: true,
    needs: ['ratio'],
    of: (columns, i, advantage) => (get(columns, 'ratio', i) === null ? null : advantage * (columns.ratio[i] - 1)),
  },
  {
    id: 'delta',
    label: 'sampler gap',
    words: 'Trainer minus sampler log-prob. Far from 0, the two do not compute the same policy.',
    isSigned: true,
    needs: ['delta'],
    of: (columns, i) => get(columns, 'delta', i),
  },
  {
    id: 'entropy',
    label: 'entropy',
    words: 'How undecided the policy was here, in nats. The few dark tokens are where answers part.',
    isSigned: false,
    needs: ['entropy'],
    of: (columns, i) => get(columns, 'entropy', i),
  },
  {
    id: 'kl',
    label: 'KL to the reference',
    words: 'The k3 estimate exp(−d) + d − 1 with d = policy minus reference log-prob: how far this token has drifted.',
    isSigned: false,
    needs: ['delta_ref'],
    of: (columns, i) => {
      const d = get(columns, 'delta_ref', i);
      return d === null ? null : Math.exp(-d) + d - 1;
    },
  },
  {
    id: 'surprise',
    label: 'surprise',
    words: 'Minus the log-prob of the token, in nats: 0 was certain, large was a rare choice.',
    isSigned: false,
    needs: ['logp_infer'],
    of: (columns, i) => {
      const logprob = logprobOf(columns, i);
      return logprob === null ? null : -logprob;
    },
  },
];

/** Modes for which the record has the columns. @param {Record<string, any[]>} columns */
export const modesFor = (columns) =>
  MODES.filter((mode) => mode.needs.every((name) => (columns[name] ?? []).some((value) => value !== null)));

/**
 * Values and their shade 0..4 by size; the scale ends at the 98th percentile so that one outlier does not blind the rest.
 * @param {TokenMode} mode @param {Record<string, any[]>} columns @param {number} advantage @param {number} count
 */
export function shades(mode, columns, advantage, count) {
  const values = Array.from({ length: count }, (_, i) =>
    columns.mask?.[i] === 0 ? null : mode.of(columns, i, advantage),
  );
  const sizes = values
    .filter((value) => value !== null)
    .map(Math.abs)
    .sort((a, b) => a - b);
  const last = sizes[sizes.length - 1] ?? 0;
  const top = sizes[Math.min(sizes.length - 1, Math.floor(sizes.length * 0.98))] || last;
  const levels = values.map((value) =>
    !value ? 0 : Math.min(4, Math.ceil((4 * Math.abs(value)) / top - 0.08)),
  );
  return { values, levels: levels.map((level) => Math.max(0, level)), top };
}

/** Token i's text: code points between its offset and the next. @param {any} data of GET tokens @returns {string[]} */
export function tokenTexts(data) {
  const points = Array.from(data.text);
  const starts = (data.columns.text_offsets ?? []).map((offset) => offset - data.text_offset);
  return starts.map((start, i) => points.slice(start, starts[i + 1] ?? points.length).join(''));
}
