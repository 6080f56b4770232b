/**
 * Text that a model or a dataset wrote, shown safely: text nodes only, every invisible character made visible.
 *
 * Bidirectional overrides could make a line read differently from what it says, zero-width characters could hide
 * words. Each is replaced by a small label. Nothing is interpreted: no markup, no links.
 */
import { html } from './html.js';

/** Characters that draw nothing or move others. A joiner between two pictographs belongs to the emoji. */
const HIDDEN = new RegExp(
  [
    '(?<=\\p{Extended_Pictographic}[\\u{1F3FB}-\\u{1F3FF}\\uFE0F]?)\\u200D(?=\\p{Extended_Pictographic})', // kept
    '([\\u0000-\\u0008\\u000B-\\u001F\\u007F-\\u009F\\u00AD\\u034F\\u061C\\u115F\\u1160\\u17B4\\u17B5\\u180B-\\u180F' +
      '\\u200B-\\u200F\\u2028-\\u202E\\u2060-\\u206F\\u3164\\uFEFF\\uFFA0\\uFFF0-\\uFFFB\\p{Cs}' +
      '\\u{1D173}-\\u{1D17A}\\u{E0000}-\\u{E0FFF}])',
  ].join('|'),
  'gu',
);

/** @type {Record<number, [string, string]>} code point -> label, name */
const NAMES = {
  0x00: ['NUL', 'null'],
  0x07: ['BEL', 'bell'],
  0x08: ['BS', 'backspace'],
  0x0d: ['CR', 'carriage return'],
  0x1b: ['ESC', 'escape'],
  0x7f: ['DEL', 'delete'],
  0xad: ['SHY', 'soft hyphen'],
  0x61c: ['ALM', 'Arabic letter mark'],
  0x200b: ['ZWSP', 'zero width space'],
  0x200c: ['ZWNJ', 'zero width non-joiner'],
  0x200d: ['ZWJ', 'zero width joiner'],
  0x200e: ['LRM', 'left-to-right mark'],
  0x200f: ['RLM', 'right-to-left mark'],
  0x2028: ['LS', 'line separator'],
  0x2029: ['PS', 'paragraph separator'],
  0x202a: ['LRE', 'left-to-right embedding'],
  0x202b: ['RLE', 'right-to-left embedding'],
  0x202c: ['PDF', 'pop directional formatting'],
  0x202d: ['LRO', 'left-to-right override'],
  0x202e: ['RLO', 'right-to-left override'],
  0x2060: ['WJ', 'word joiner'],
  0x2066: ['LRI', 'left-to-right isolate'],
  0x2067: ['RLI', 'right-to-left isolate'],
  0x2068: ['FSI', 'first strong isolate'],
  0x2069: ['PDI', 'pop directional isolate'],
  0xfeff: ['BOM', 'byte order mark'],
};

/** @typedef {{text: string, hidden?: string}} Segment  `hidden`: what the label stands for */

/**
 * Cut a text into what is shown as it is and what is shown as a label.
 * @param {string} text
 * @param {boolean|'ends'} [isRaw] also label line ends and tabs, and, unless `ends`, spaces before a line end
 * @returns {Segment[]}
 */
export function segments(text, isRaw = false) {
  /** @type {Segment[]} */
  const parts = [];
  let start = 0;
  for (const found of text.matchAll(HIDDEN)) {
    if (found[1] === undefined) continue;
    if (found.index > start) parts.push(...visible(text.slice(start, found.index), isRaw));
    parts.push(label(found[1]));
    start = found.index + found[1].length;
  }
  if (start < text.length) parts.push(...visible(text.slice(start), isRaw));
  return parts;
}

/** @param {string} text @param {boolean|'ends'} isRaw @returns {Segment[]} */
function visible(text, isRaw) {
  if (!isRaw) return [{ text }];
  return text
    .split(isRaw === 'ends' ? /(\n|\t)/ : /(\n|\t| +(?=\n|$))/)
    .filter(Boolean)
    .map((piece) => {
      if (piece === '\n') return { text: '↵\n', hidden: 'line feed' };
      if (piece === '\t') return { text: '⇥\t', hidden: 'tab' };
      return isRaw !== 'ends' && /^ +$/.test(piece)
        ? { text: '·'.repeat(piece.length), hidden: 'space at the end' }
        : { text: piece };
    });
}

/** @param {string} character @returns {Segment} */
function label(character) {
  const code = character.codePointAt(0) ?? 0;
  const hex = `U+${code.toString(16).toUpperCase().padStart(4, '0')}`;
  const [short, name] = NAMES[code] ?? [hex, 'invisible character'];
  return { text: short, hidden: `${hex} ${name}` };
}

/** The text as one plain string, labels in brackets: for titles, aria labels and SVG. @param {any} text */
export const flat = (text) =>
  segments(String(text ?? ''))
    .map((part) => (part.hidden ? `⟦${part.text}⟧` : part.text))
    .join('');

/** @param {any} text @param {number} limit in code points */
export function cut(text, limit) {
  const points = Array.from(flat(text).replace(/\s+/g, ' ').trim());
  return points.length > limit ? `${points.slice(0, limit - 1).join('')}…` : points.join('');
}

/**
 * @param {{text: any, raw?: boolean|'ends', class?: string}} props
 */
export function Untrusted({ text, raw = false, class: name = '' }) {
  return html`<bdi class=${`untrusted ${name}`} dir="auto">${marked(String(text ?? ''), raw)}</bdi>`;
}

/** The pieces of a text as nodes: labels in boxes. @param {string} text @param {boolean|'ends'} [isRaw] */
export const marked = (text, isRaw = false) =>
  segments(text, isRaw).map((part) =>
    part.hidden ? html`<span class="ctl" title=${part.hidden}>${part.text}</span>` : part.text,
  );
