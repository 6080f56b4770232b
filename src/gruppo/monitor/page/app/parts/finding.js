/**
 * A finding of a check: what happened, which answers prove it, what to do, and what the check is.
 */
import { join } from '../api.js';
import { exact } from '../format.js';
import { useResource } from '../hooks.js';
import { html, useState } from '../html.js';
import { href } from '../routes.js';
import { Untrusted } from '../untrusted.js';
import { Level, waiting } from './basics.js';

/** What a finding's severity is among the levels of the page. */
export const SEVERITIES = { INFO: 'info', WARN: 'warn', ALERT: 'alert' };

/** What the ids of checks look like; others have no page. */
const CHECK = /^D\d\d$/;

/** @param {any} finding */
export const levelOf = (finding) => (finding.is_cleared ? 'ok' : (SEVERITIES[finding.severity] ?? 'unknown'));

/** Tells findings apart in a list that grows. @param {any} finding */
export const keyOf = (finding) => `${finding.time}/${finding.detector}/${finding.step}/${finding.severity}`;

/** @param {{run: string, finding: any, id?: string}} props */
export const FindingLine = ({ run, finding, id }) => html`
  <li class=${`finding finding-${levelOf(finding)}`} id=${id}>
    <p class="finding-head">
      <${Level} level=${levelOf(finding)} label=${finding.is_cleared ? 'cleared' : undefined} />
      <b><${Untrusted} text=${`${finding.detector} ${finding.name}`} /></b>
      <a href=${href('step', { run, step: finding.step })}>step ${finding.step}</a>
      ${
        finding.action &&
        finding.action !== 'log' &&
        html`<span class="chip">action: <${Untrusted}
        text=${finding.action} /></span>`
      }
    </p>
    <p><${Untrusted} text=${finding.message} /></p>
    ${
      finding.advice &&
      html`<p class="advice"><span aria-hidden="true">→ </span><${Untrusted} text=${finding.advice} />
      </p>`
    }
    <${Evidence} run=${run} rows=${finding.evidence ?? []} />
    ${CHECK.test(finding.detector) && html`<${About} run=${run} check=${finding.detector} />`}
  </li>
`;

/** @param {{run: string, rows: any[]}} props */
const Evidence = ({ run, rows }) =>
  rows.length > 0 &&
  html`<p class="evidence">
    Open ${rows.length}:
    ${placesOf(rows).map(
      ([place, answers]) => html` <span><span class="place">${place}</span>
        ${answers.map(
          (row) => html` <a href=${href('completion', { run, id: row.id })}
            aria-label=${`${place} answer ${row.sample}`}>answer ${row.sample}</a>`,
        )}</span>`,
    )}
  </p>`;

/** Answers of one group stand together. @param {any[]} rows @returns {[string, any[]][]} */
function placesOf(rows) {
  /** @type {Map<string, any[]>} */
  const places = new Map();
  for (const row of rows) {
    const place = `step ${row.step} group ${row.group_id}`;
    places.set(place, [...(places.get(place) ?? []), row]);
  }
  return [...places];
}

/** The check's documentation, asked for when it is opened. @param {{run: string, check: string}} props */
function About({ run, check }) {
  const [isOpen, setIsOpen] = useState(false);
  return html`
    <details class="about" onToggle=${(event) => setIsOpen(event.currentTarget.open)}>
      <summary>What ${check} is</summary>
      ${isOpen && html`<${Page} run=${run} check=${check} />`}
    </details>
  `;
}

/** @param {{run: string, check: string}} props */
function Page({ run, check }) {
  const page = useResource(`runs/${join(run)}/health/${join(check)}`);
  if (!page.data) return waiting(page);
  const { data } = page;
  const { bad, of } = data.fire;
  return html`
    <p><${Untrusted} text=${data.meaning} /></p>
    <p><b>How it is computed.</b> <${Untrusted} text=${data.computed} /></p>
    <p><b>What to do.</b> <${Untrusted} text=${data.remedy} /></p>
    <p><b>Fires</b> ${of === 1 ? 'at once.' : `when ${bad} of its last ${of} readings are bad.`}</p>
    <ul>
      ${data.limits.map(
        (limit) => html`<li>
        <code><${Untrusted} text=${`${check}.${limit.name}`} /></code> = ${exact(limit.value)}${limit.value === limit.default ? '' : ` (default ${exact(limit.default)})`}:
        <${Untrusted} text=${limit.meaning} />
      </li>`,
      )}
    </ul>
    <p><b>Source.</b> <${Untrusted} text=${data.source} /></p>
    <p class="muted"><${Untrusted} text=${data.docs} /></p>
  `;
}
