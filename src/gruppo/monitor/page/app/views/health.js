/**
 * Health: one lane per check over the steps, then what they found with the answers that prove it.
 */
import { join } from '../api.js';
import { html, useState } from '../html.js';
import { useResource, useTitle, useWidth } from '../hooks.js';
import { Choice, Empty, LEVELS, Level, Section, waiting } from '../parts/basics.js';
import { FindingLine, SEVERITIES, keyOf } from '../parts/finding.js';
import { flat } from '../untrusted.js';
import { Figure } from '../charts/figure.js';

const SOURCES = {
  events: 'The run reported these while it trained.',
  audit: 'The run was recorded without live checks; these were computed from its files just now.',
  none: 'This run was recorded without live checks, and its files do not allow them now.',
};

/** @param {import('./index.js').ViewProps} props */
export function Health({ run, summary, versions }) {
  const health = useResource(`runs/${join(run)}/health`, {}, `${versions.events}/${versions.metrics}`);
  const [detector, setDetector] = useState('');
  const [which, setWhich] = useState('all');
  useTitle(`${summary.name}: health`);
  if (!health.data) return html`<h1>Health</h1>${waiting(health)}`;
  const { data } = health;
  const open = new Set(data.detectors.filter((each) => each.is_open).map((each) => each.detector));
  const findings = data.findings.filter(
    (finding) =>
      (!detector || finding.detector === detector) &&
      (which === 'all' || (open.has(finding.detector) && !finding.is_cleared)),
  );
  return html`
    <h1>Health</h1>
    <p
      class="note">${SOURCES[data.source]} These are statistical hints, not proof: each one names the answers to read.</p>
    <p class="counts">
      ${[
        ['alert', data.num_findings.ALERT, 'alert'],
        ['warn', data.num_findings.WARN, 'warning'],
        ['info', data.num_findings.INFO, 'hint'],
      ].map(
        ([level, count, word]) => html`<span class=${count ? '' : 'muted'}><${Level} level=${count ? level : 'ok'}
          label="" /><b>${count}</b> open ${word}${count === 1 ? '' : 's'}</span>`,
      )}
    </p>
    ${
      data.detectors.length > 0 &&
      html`<${Strip} detectors=${data.detectors} last=${Math.max(data.step ?? 1, 1)}
      picked=${detector} onPick=${(id) => setDetector(id === detector ? '' : id)} />`
    }
    <${Section} title=${detector ? `Findings of ${flat(detector)}` : 'Findings'}
      aside=${html`<span
      class="toolbar">${detector && html`<button type="button" onClick=${() => setDetector('')}>All checks</button>`}
        <${Choice} label="Show" value=${which} options=${[
          ['all', 'all'],
          ['open', 'open only'],
        ]} onPick=${setWhich} />
          </span>`}>
      ${
        findings.length
          ? html`<ul
          class="finding-list">${findings.map(
            (finding) => html`<${FindingLine} key=${keyOf(finding)} run=${run}
          finding=${finding} />`,
          )}</ul>`
          : html`<${Empty}
          title="Nothing was found.">${data.findings.length ? 'No finding fits this choice.' : 'The checks that could look found nothing unusual.'}<//>`
      }
    <//>
  `;
}

const LANE = 26;

/** Lanes of detectors; each span has a colour, a glyph and a height of its own. */
function Strip({ detectors, last, picked, onPick }) {
  const [box, width] = useWidth();
  const labels = width < 560 ? 88 : 240;
  const x = (step) => labels + ((width - labels - 8) * (step - 1)) / Math.max(last - 1, 1);
  const height = detectors.length * LANE + 26;
  const rows = () =>
    detectors.flatMap((lane) =>
      lane.spans.map((span) => [
        flat(`${lane.detector} ${lane.name}`),
        flat(span.severity),
        span.from,
        span.to ?? 'still open',
      ]),
    );
  return html`
    <${Figure} title="Checks over the steps" name="Checks over the steps"
      note="A lane per check that had something to say; a press on its name shows its findings."
      twin=${{ columns: ['check', 'severity', { label: 'from step', numeric: true }, { label: 'to step', numeric: true }], rows }}>
      <div class="strip" ref=${box}>
        ${
          width > 0 &&
          html`
          <svg width=${width} height=${height} aria-hidden="true" focusable="false">
            ${[0, 0.25, 0.5, 0.75, 1].map((share) => {
              const step = Math.round(1 + share * (last - 1));
              return html`<line x1=${x(step)} x2=${x(step)} y1="0" y2=${height - 22} class="strip-grid" /><text
                x=${x(step)} y=${height - 6} text-anchor=${share === 1 ? 'end' : 'middle'}
                class="strip-step">${step}</text>`;
            })}
            ${detectors.map(
              (lane, i) => html`
              <rect x=${labels} y=${i * LANE + 3} width=${width - labels - 8} height=${LANE - 6} class="strip-bed"
                rx="3" />
              ${lane.spans.map((span) => {
                const from = x(span.from);
                const to = Math.max(x(span.to ?? last), from + 12);
                return html`<g class=${`span-${SEVERITIES[span.severity]}`}>
                  <rect x=${Math.min(from, width - 20)} y=${i * LANE + 3}
                    width=${Math.max(Math.min(to, width - 8) - from, 12)} height=${LANE - 6} rx="3" />
                  <text x=${Math.min(from, width - 20) + 4}
                    y=${i * LANE + 17}>${(LEVELS[SEVERITIES[span.severity]] ?? LEVELS.unknown)[0]}</text>
                </g>`;
              })}
            `,
            )}
          </svg>
          <ul class="strip-names">
            ${detectors.map(
              (lane) => html`<li><button type="button" class="quiet"
              aria-pressed=${String(lane.detector === picked)} onClick=${() => onPick(lane.detector)}
              aria-label=${`${flat(lane.detector)} ${flat(lane.name)}: ${flat(lane.severity)}, ${lane.is_open ? 'open' : 'cleared'}, ${lane.spans.length} times`}>
              <b>${flat(lane.detector)}</b><span class="strip-name"> ${flat(lane.name)}</span></button></li>`,
            )}
          </ul>
        `
        }
      </div>
    <//>
  `;
}
