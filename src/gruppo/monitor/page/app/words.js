/**
 * What the numbers mean, in one sentence each, and the eight charts of the Overview. Names are those of docs/metrics.md.
 */
import { duration, percent, short } from './format.js';

/**
 * @typedef {{
 *   id: string, title: string, note: string, keys: [string, string][], format?: (value: any) => string,
 *   range?: [number, number], split?: string, empty?: string, band?: boolean, unit?: string
 * }} ChartOf  `keys`: metric, label. The first that is recorded is the chart's value
 */

/** @type {ChartOf[]} */
export const OVERVIEW = [
  {
    id: 'reward',
    title: 'Reward',
    note: 'Weighted sum of the reward functions, mean of the step. The shade spans the steps behind a point.',
    keys: [['reward', 'reward']],
    band: true,
  },
  {
    id: 'heldout',
    title: 'Held-out reward',
    note: 'On prompts that are not trained on. If it falls while the reward rises, the reward is being gamed.',
    keys: [],
    empty: 'No evaluation yet. Give eval_dataset and eval_steps to see whether the gain is real.',
  },
  {
    id: 'signal',
    title: 'Groups without a signal',
    note: 'Answers whose group has equal rewards teach nothing. Solved: make it harder. Failed: make it easier.',
    keys: [
      ['frac_reward_zero_std', 'no difference'],
      ['groups/frac_solved', 'all solved'],
      ['groups/frac_failed', 'all failed'],
    ],
    format: percent,
    range: [0, 1],
  },
  {
    id: 'length',
    title: 'Answer length',
    note: 'Tokens that the model made. A sudden change is worth a look at the answers.',
    keys: [
      ['completions/mean_length', 'mean'],
      ['completions/max_length', 'longest'],
    ],
    unit: 'tokens',
  },
  {
    id: 'clipped',
    title: 'Cut-off answers',
    note: 'Answers that hit max_completion_length. Many of them often means a reward of 0 for no good reason.',
    keys: [['completions/clipped_ratio', 'cut-off answers']],
    format: percent,
    range: [0, 1],
  },
  {
    id: 'entropy',
    title: 'Entropy',
    note: 'How undecided the policy is, nats per token. Near 0 it no longer explores.',
    keys: [['entropy', 'entropy']],
    unit: 'nats',
  },
  {
    id: 'drift',
    title: 'Drift',
    note: 'KL to the reference (with beta), and the gap between sampler and trainer log-probs. Both should stay small.',
    keys: [
      ['kl', 'KL'],
      ['sampling/sampling_logp_difference/mean', 'sampler gap'],
    ],
    unit: 'nats',
    range: [0, 0],
  },
  {
    id: 'grad',
    title: 'Gradient norm',
    note: 'Before clipping. Spikes are unstable steps; 0 means that nothing was learned.',
    keys: [['grad_norm', 'gradient norm']],
    range: [0, 0],
  },
];

/** Parts of a group's kind: glyph, word, sentence. */
export const KINDS = {
  mixed: ['◐', 'mixed', 'Some answers are better than others: this group teaches.'],
  solved: ['●', 'solved', 'All answers got the same high reward: nothing left to learn here.'],
  failed: ['○', 'failed', 'All answers got the same low reward: nothing to learn from.'],
  flat: ['◎', 'flat', 'All answers got the same reward.'],
  unscored: ['×', 'unscored', 'No reward function gave a value.'],
};

/** Why an answer ended. */
export const REASONS = {
  stop: 'ended by itself',
  length: 'cut off at max_completion_length',
  abort: 'given up by the engine',
};

/** What a status of a reward means. */
export const STATUSES = {
  ok: 'a number',
  none: 'abstained (None)',
  nan: 'not a number (NaN)',
  inf: 'infinite',
  error: 'raised an error',
  timeout: 'took too long',
};

/** How a metric is written. @param {string} name @returns {(value: any) => string} */
export function formatOf(name) {
  if (/frac|ratio$|clip_ratio|pass@/.test(name)) return percent;
  return /time\/|step_time|runtime/.test(name) ? duration : short;
}

/** Colour-free sign of a number: up, down, level. @param {number|null|undefined} value */
export const arrow = (value) =>
  value === null || value === undefined ? '·' : value > 1e-9 ? '▲' : value < -1e-9 ? '▼' : '=';
