/**
 * DataTable: a paged, plain table. The twin of every chart, and the body of every list of rows.
 */
import { html, useState } from '../html.js';
import { flat } from '../untrusted.js';
import { Pager } from './basics.js';

/**
 * @typedef {{label: string, numeric?: boolean, class?: string}} Column
 * @param {{caption: string, columns: (Column|string)[], rows: any[][], perPage?: number, hidden?: boolean, empty?: string}} props
 *   `hidden`: keep the caption for screen readers only
 */
export function DataTable({ caption: given, columns, rows, perPage = 20, hidden = false, empty = 'Nothing here.' }) {
  const caption = flat(given);
  const [wanted, setPage] = useState(1);
  const numPages = Math.max(1, Math.ceil(rows.length / perPage));
  const page = Math.min(wanted, numPages);
  const heads = columns.map((column) =>
    typeof column === 'string' ? { label: flat(column) } : { ...column, label: flat(column.label) },
  );
  const shown = rows.slice((page - 1) * perPage, page * perPage);
  return html`
    <div class="table-box" tabindex="0" role="region" aria-label=${caption}>
      <table>
        <caption class=${hidden ? 'sr-only' : ''}>${caption}</caption>
        <thead>
          <tr>
            ${heads.map((head) => html`<th scope="col" class=${head.numeric ? 'num' : ''}>${head.label}</th>`)}
          </tr>
        </thead>
        <tbody>
          ${shown.map(
            (row) =>
              html`<tr>
                ${row.map(
                  (cell, i) => html`<td
                  class=${`${heads[i]?.numeric ? 'num' : ''} ${heads[i]?.class ?? ''}`}>${cell}</td>`,
                )}
              </tr>`,
          )}
          ${rows.length === 0 && html`<tr><td colspan=${heads.length} class="muted">${empty}</td></tr>`}
        </tbody>
      </table>
    </div>
    <${Pager} page=${page} numPages=${numPages} onPage=${setPage} label=${`pages of ${caption}`} />
  `;
}
