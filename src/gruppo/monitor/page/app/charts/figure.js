/**
 * The frame around every chart: name, one sentence, latest value, legend, and the same numbers as a table.
 */
import { html, useState } from '../html.js';
import { flat } from '../untrusted.js';
import { DataTable } from '../parts/table.js';

/** @typedef {{caption?: string, columns: any[], rows: () => any[][]}} Twin  rows are made only when the table is opened */

/**
 * @param {{title: any, name: string, note?: any, value?: any, delta?: any, legend?: any, twin: Twin, children?: any,
 *          class?: string}} props  `name`: the title as plain text
 */
export function Figure({ title, name: given, note, value, delta, legend, twin, children, class: extra = '' }) {
  const [isTable, setTable] = useState(false);
  const name = flat(given);
  return html`
    <figure class=${`figure ${extra}`} role="figure" aria-label=${name}>
      <div class="figure-head">
        <h3>${typeof title === 'string' ? flat(title) : title}</h3>
        <button type="button" class="quiet" aria-label=${isTable ? `${name}: chart` : `${name}: table`}
          onClick=${() => setTable(!isTable)}>
          ${isTable ? 'Chart' : 'Table'}
        </button>
      </div>
      ${
        value !== undefined &&
        value !== null &&
        html`<p
        class="figure-value">${value}${delta && html`<span class="figure-delta">${delta}</span>`}</p>`
      }
      ${note && html`<p class="figure-note">${note}</p>`}
      ${
        isTable
          ? html`<${DataTable} caption=${twin.caption ?? name} columns=${twin.columns} rows=${twin.rows()}
          perPage=${15} hidden />`
          : html`${children} ${legend}`
      }
    </figure>
  `;
}

/** The mark of series number `i`: a line with its dash and colour. @param {{i: number}} props */
export const Swatch = ({ i }) => html`
  <svg class="swatch" width="26" height="10" aria-hidden="true" focusable="false">
    <line x1="1" y1="5" x2="25" y2="5" class=${`stroke-${(i % 6) + 1}`} stroke-width="2.5"
      stroke-dasharray=${(DASHES[i % 6] ?? []).join(' ')} />
  </svg>
`;

/** Dashes of series 0..5: colour is never the only difference. */
export const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [4, 2], [12, 5]];
