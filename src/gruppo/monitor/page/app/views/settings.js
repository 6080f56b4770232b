/**
 * Settings: what the run was started with: plan in words, every field, versions, seeds, device.
 */
import { moment, setting } from '../format.js';
import { html, useState } from '../html.js';
import { useTitle } from '../hooks.js';
import { Section } from '../parts/basics.js';
import { DataTable } from '../parts/table.js';
import { Untrusted } from '../untrusted.js';

/** @param {import('./index.js').ViewProps} props */
export function Settings({ summary }) {
  const [wanted, setWanted] = useState('');
  useTitle(`${summary.name}: settings`);
  const fields = Object.entries(summary.config ?? {})
    .filter(([name]) => name.toLowerCase().includes(wanted.trim().toLowerCase()))
    .sort(([a], [b]) => a.localeCompare(b));
  return html`
    <h1>Settings</h1>
    <p class="muted">Run <${Untrusted}
      text=${summary.run_id} />, created ${moment(summary.created)}, schema ${summary.schema_version}.</p>
    <${Section}
      title="What one step consumes">${
        summary.plan?.length
          ? html`<ul
      class="plain">${summary.plan.map((line) => html`<li><${Untrusted} text=${line} /></li>`)}</ul>`
          : html`<p
      class="muted">Not recorded.</p>`
      }<//>
    <${Section} title="Fields"
      aside=${html`<label class="select"><span>Find</span><input type="search" value=${wanted}
      onInput=${(event) => setWanted(event.currentTarget.value)} /></label>`}>
      <${Pairs} caption="Fields of the config" entries=${fields} perPage=${40} />
    <//>
    <div class="two">
      <${Section} title="Versions"><${Pairs} caption="Versions" entries=${Object.entries(summary.versions ?? {})} /><//>
      <${Section} title="Device and seeds"><${Pairs} caption="Device and seeds"
        entries=${[...Object.entries(summary.device ?? {}), ...Object.entries(summary.seeds ?? {})]} /><//>
    </div>
  `;
}

/** @param {{caption: string, entries: [string, any][], perPage?: number}} props */
const Pairs = ({ caption, entries, perPage = 20 }) => html`
  <${DataTable} caption=${caption} hidden columns=${['name', { label: 'value', class: 'wrap' }]} perPage=${perPage}
    rows=${entries.map(([name, value]) => [
      html`<code><${Untrusted} text=${name} /></code>`,
      html`<${Untrusted}
    text=${setting(value)} />`,
    ])} />
`;
