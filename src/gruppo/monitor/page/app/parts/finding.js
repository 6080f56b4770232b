/**
 * A finding of a check: what happened, which answers prove it, what to do.
 */
import { html } from '../html.js';
import { href } from '../routes.js';
import { Untrusted } from '../untrusted.js';
import { Level } from './basics.js';

/** What a finding's severity is among the levels of the page. */
export const SEVERITIES = { INFO: 'info', WARN: 'warn', ALERT: 'alert' };

/** @param {any} finding */
export const levelOf = (finding) => (finding.is_cleared ? 'ok' : (SEVERITIES[finding.severity] ?? 'unknown'));

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
  </li>
`;

/** @param {{run: string, rows: any[]}} props */
const Evidence = ({ run, rows }) =>
  rows.length > 0 &&
  html`<p class="evidence">
    Open ${rows.length}:
    ${rows.map(
      (row) => html` <a
        href=${href('completion', { run, id: row.id })}>step ${row.step} group ${row.group_id} answer ${row.sample}</a>`,
    )}
  </p>`;
