/**
 * The table of views: route name -> component, and which of them stand in the run's list of views.
 */
import { html } from '../html.js';
import { href } from '../routes.js';
import { Completion } from './completion.js';
import { Compare, CompareChoice } from './compare.js';
import { Discarded } from './discarded.js';
import { Evals } from './evals.js';
import { Group } from './group.js';
import { Health } from './health.js';
import { Overview } from './overview.js';
import { PromptHistory, Prompts } from './prompt.js';
import { Rewards } from './rewards.js';
import { Runs } from './runs.js';
import { Settings } from './settings.js';
import { LatestStep, Step } from './step.js';
import { Timeline } from './timeline.js';
import { Tokens } from './tokens.js';

/**
 * @typedef {{
 *   route: import('../routes.js').Route, run: string, summary: any, runs: import('../hooks.js').Resource,
 *   versions: import('../live.js').Versions
 * }} ViewProps  what every view gets
 */

export const VIEWS = {
  runs: Runs,
  compare: Compare,
  compareChoice: CompareChoice,
  overview: Overview,
  health: Health,
  rewards: Rewards,
  latestStep: LatestStep,
  step: Step,
  group: Group,
  completion: Completion,
  tokens: Tokens,
  prompts: Prompts,
  prompt: PromptHistory,
  evals: Evals,
  timeline: Timeline,
  discarded: Discarded,
  settings: Settings,
  unknown: () => html`<h1>No such page</h1><p>This address leads nowhere. <a href=${href('runs')}>All runs</a></p>`,
};

/** `key`: pressed after g. `covers`: routes for which the entry is "here". */
export const RUN_VIEWS = [
  { name: 'overview', label: 'Overview', key: 'o', covers: ['overview'] },
  { name: 'health', label: 'Health', key: 'h', covers: ['health'] },
  { name: 'rewards', label: 'Rewards', key: 'r', covers: ['rewards'] },
  { name: 'latestStep', label: 'Steps', key: 's', covers: ['latestStep', 'step', 'group', 'completion', 'tokens'] },
  { name: 'prompts', label: 'Prompts', key: 'p', covers: ['prompts', 'prompt'] },
  { name: 'evals', label: 'Evals', key: 'e', covers: ['evals'] },
  { name: 'timeline', label: 'Timeline', key: 'l', covers: ['timeline'] },
  { name: 'discarded', label: 'Discarded', key: 'd', covers: ['discarded'] },
  { name: 'compareChoice', label: 'Compare', key: 'c', covers: ['compareChoice', 'compare'] },
  { name: 'settings', label: 'Settings', key: 't', covers: ['settings'] },
];
