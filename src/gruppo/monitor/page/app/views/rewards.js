/**
 * Rewards: what each function gives, which of them the signal comes from, and what the reward goes along with.
 */
import { join } from '../api.js';
import { LineChart } from '../charts/line.js';
import { Correlations, Ridge, Scatter, ShareBar } from '../charts/statistics.js';
import { percent, plural, short } from '../format.js';
import { html } from '../html.js';
import { useMetrics, useResource, useSmoothing, useTitle } from '../hooks.js';
import { Choice, Empty, Section, Select, waiting } from '../parts/basics.js';
import { go, href } from '../routes.js';

/** What is not a function's own name is a word of ours, and begins a title. */
const SUMS = { reward: 'Reward', advantage: 'Advantage' };

/** @param {import('./index.js').ViewProps} props */
export function Rewards({ run, summary, route, versions }) {
  const { split = 'train', y = 'reward' } = route.query;
  const rewards = useResource(`runs/${join(run)}/rewards`, { split }, versions.rollouts);
  useTitle(`${summary.name}: rewards`);
  const { data } = rewards;
  const names = data?.reward_names.length ? data.reward_names : summary.reward_names;
  const openStep = (step) => go(href('step', { run, step }, split === 'train' ? {} : { split }));
  return html`
    <h1>Rewards</h1>
    <${Terms} run=${run} names=${names} versions=${versions} />
    ${
      !data
        ? waiting(rewards)
        : data.num_rows === 0
          ? html`<${Empty}
          title="No answers are recorded.">The charts below this line are drawn from the recorded answers.<//>`
          : html`
            <p
              class="note">From here on: ${plural(data.num_used, 'answer')} of ${plural(data.rounds.length, 'round')}, steps ${data.from} to ${data.to}${data.num_used < data.num_rows ? `, thinned evenly from ${short(data.num_rows)}` : ''}.</p>
            <${Shares} data=${data} onOpen=${openStep} />
            <div class="toolbar"><${Select} label="Against length" value=${y}
              options=${['reward', 'advantage', ...data.reward_names].map((name) => [name, name])}
              onPick=${(value) => go(href('rewards', { run }, { ...route.query, y: value }), true)} /></div>
            <div class="two">
              <${Scatter} title=${`${SUMS[y] ?? y} and length`}
                note="If long answers earn more whatever they say, the reward pays for length. A click opens the answer."
                xs=${data.rows.lengths} ys=${y in data.rows.terms ? data.rows.terms[y] : data.rows[y === 'advantage' ? 'advantages' : 'rewards']} steps=${data.rows.steps} ids=${data.rows.ids}
                xLabel="tokens" yLabel=${y} onOpen=${(id) => go(href('completion', { run, id }))} />
              <${Ridge} title="Spread of the reward over time"
                note="One column per round, darker where more answers are. A click opens the step."
                steps=${data.rows.steps} values=${data.rows.rewards} onOpen=${openStep} />
            </div>
            <${Section} title="What goes along with what"
              note="Near +1: they rise together. Near −1: one rises as the other falls. Two functions near +1 say the same twice.">
              <${Correlations} ...${data.correlations} /><//>
          `
    }
  `;
}

/** Each function's mean over the steps. @param {{run: string, names: string[], versions: any}} props */
function Terms({ run, names, versions }) {
  const { curves } = useMetrics(run, { keys: ['reward', 'reward_std', 'rewards/*'] }, versions.metrics);
  const [window, setWindow] = useSmoothing('rewards');
  const open = (step) => go(href('step', { run, step }));
  const lines = (part) =>
    names.map((name) => ({ label: name, values: curves.series[`rewards/${name}/${part}`]?.mean ?? [] }));
  const shared = { steps: curves.steps, lastSteps: curves.lastSteps, onOpen: open, window, sync: 'rewards' };
  const total = [
    { label: 'reward', values: curves.series.reward?.mean ?? [] },
    { label: 'std of the round', values: curves.series.reward_std?.mean ?? [] },
  ];
  return html`
    <div class="chart-head"><h2>Functions</h2><${Choice} label="Smoothing" value=${String(window)}
      options=${[
        ['1', 'none'],
        ['5', '5'],
        ['20', '20'],
      ]} onPick=${(value) => setWindow(Number(value))} /></div>
    <div class="chart-grid wide">
      <${LineChart} title="Weighted sum" note="What the group is compared by." lines=${total} ...${shared} />
      <${LineChart} title="Mean of each function" note="Unweighted; answers on which a function abstained are left out."
        lines=${lines('mean')} ...${shared} value=${null} />
      <${LineChart} title="Spread of each function"
        note="Standard deviation over the round. Near 0, a function cannot tell answers apart." lines=${lines('std')}
        ...${shared} value=${null} />
    </div>
  `;
}

/** @param {{data: any, onOpen: (step: number) => void}} props */
const Shares = ({ data, onOpen }) => html`
  <${Section} title="Where the signal comes from"
    note="Part of the reward's variance inside groups that each function makes. GRPO sees only differences inside a group: a function with a high mean but no differences does not teach.">
    <${ShareBar} shares=${data.shares} names=${data.reward_names} />
    <${LineChart} title="Share of the signal over time" format=${percent} steps=${data.by_round.steps} range=${[0, 1]}
      onOpen=${onOpen} value=${null}
      lines=${data.reward_names.map((name) => ({ label: name, values: data.by_round.shares[name] ?? [] }))} />
  <//>
`;
