/**
 * Help: the keys, and what the signs of the page mean.
 */
import { html, useEffect, useRef } from './html.js';
import { KEY_HELP } from './keys.js';
import { LEVELS } from './parts/basics.js';
import { KINDS } from './words.js';

/** @param {{onClose: () => void}} props */
export function Help({ onClose }) {
  const dialog = useRef(null);
  useEffect(() => {
    if (dialog.current && !dialog.current.open) dialog.current.showModal();
  }, []);
  return html`
    <dialog class="help" ref=${dialog} onClose=${onClose} aria-labelledby="help-title">
      <div class="section-head">
        <h2 id="help-title">Keys and signs</h2>
        <button type="button" class="quiet" onClick=${() => dialog.current.close()}>Close</button>
      </div>
      <table>
        <caption class="sr-only">Keys</caption>
        <tbody>
          ${KEY_HELP.map(
            ([keys, words]) => html`<tr><th
            scope="row">${keys.split(' ').map((key) => (key === 'then' ? ' then ' : html`<kbd>${key}</kbd> `))}</th>
            <td>${words}</td></tr>`,
          )}
        </tbody>
      </table>
      <h3>Groups</h3>
      <ul class="plain">
        ${Object.values(KINDS).map(
          ([glyph, word, words]) => html`<li><span class="glyph"
          aria-hidden="true">${glyph}</span> <b>${word}</b>: ${words}</li>`,
        )}
      </ul>
      <h3>Levels</h3>
      <p>${Object.entries(LEVELS).map(
        ([level, [glyph, word]]) => html`<span class=${`level level-${level}`}><span
        class="glyph">${glyph}</span>${word}</span> `,
      )}</p>
      <h3>Text of the model</h3>
      <p>
        Shown as it was written and never as markup. Characters that draw nothing or change the direction are labelled, as in${' '}
        <span class="ctl">RLO</span> (right-to-left override) or <span class="ctl">ZWSP</span> (zero width space).
      </p>
    </dialog>
  `;
}
