/**
 * The keyboard: views say which keys they answer to, one listener on the document asks the latest view first.
 */
import { useLayoutEffect } from './html.js';

/** @typedef {Record<string, (event: KeyboardEvent) => unknown>} Bindings  `event.key` -> what to do; false: not mine */

/** @type {Bindings[]} */
const stack = [];

document.addEventListener('keydown', (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
  if (isScrolling(event)) return;
  if (document.querySelector('dialog[open]')) return;
  for (let i = stack.length - 1; i >= 0; i -= 1) {
    const action = stack[i][event.key];
    if (!action || (event.key === 'Enter' && isPressable(event.target))) continue;
    if (action(event) === false) continue;
    event.preventDefault();
    return;
  }
});

/** Arrow keys belong to a list or a text box while it has the focus. @param {EventTarget|null} target */
const isTyping = (target) =>
  target instanceof Element && target.closest('input, select, textarea, [data-own-keys]') !== null;

/** Arrow keys scroll a text that has the focus and is larger than its box. @param {KeyboardEvent} event */
function isScrolling({ key, target }) {
  if (!(target instanceof Element) || !target.matches('pre[tabindex]')) return false;
  if (key === 'ArrowUp' || key === 'ArrowDown') return target.scrollHeight > target.clientHeight;
  return (key === 'ArrowLeft' || key === 'ArrowRight') && target.scrollWidth > target.clientWidth;
}

/** Enter on a link or a button is theirs. @param {EventTarget|null} target */
const isPressable = (target) => target instanceof Element && target.closest('a, button, summary') !== null;

/**
 * Bind keys while the view is shown. Bound before the browser paints: whoever types fast must not move the view of a
 * moment ago.
 * @param {Bindings} bindings
 */
export function useKeys(bindings) {
  useLayoutEffect(() => {
    stack.push(bindings);
    return () => void stack.splice(stack.indexOf(bindings), 1);
  });
}

/** What the help says: keys, meaning. */
export const KEY_HELP = [
  ['← →', 'step before, step after; in a chart or token view: move the cursor'],
  ['↑ ↓', 'group before, group after'],
  ['j k', 'next, previous answer of a group'],
  ['Enter', 'open what is marked'],
  ['t', 'tokens of the answer'],
  ['w', 'in the token view: the next of the strongest tokens'],
  ['u', 'one level up: tokens, answer, group, step, overview'],
  [
    'g then o h r s p e l d c t',
    'go to Overview, Health, Rewards, Steps, Prompts, Evals, timeLine, Discarded, Compare, seTtings',
  ],
  ['?', 'this list'],
  ['Esc', 'close it'],
];
