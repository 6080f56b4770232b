/**
 * Which words of a text are not in another: longest common subsequence, word by word. Pure.
 */

/** Beyond this many words only the common start and end are told apart from the rest. */
const MAX_WORDS = 600;

/**
 * @param {string} base @param {string} text
 * @returns {{text: string, isNew: boolean}[]} the pieces of `text`, in order
 */
export function newParts(base, text) {
  const a = words(base);
  const b = words(text);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1;
  const [middleA, middleB] = [a.slice(start, a.length - end), b.slice(start, b.length - end)];
  const kept = middleA.length * middleB.length <= MAX_WORDS * MAX_WORDS ? common(middleA, middleB) : new Set();
  const flags = b.map((_, i) => i >= start && i < b.length - end && !kept.has(i - start));
  return merged(b, flags);
}

/** @param {string} text */
const words = (text) => text.split(/(\s+)/).filter(Boolean);

/** Positions of `b` that belong to the longest common subsequence. @param {string[]} a @param {string[]} b */
function common(a, b) {
  const width = b.length + 1;
  const lengths = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      lengths[i * width + j] =
        a[i] === b[j]
          ? lengths[(i + 1) * width + j + 1] + 1
          : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
    }
  }
  const kept = new Set();
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) {
      kept.add(j);
      i += 1;
      j += 1;
    } else if (lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) i += 1;
    else j += 1;
  }
  return kept;
}

/** @param {string[]} pieces @param {boolean[]} flags */
function merged(pieces, flags) {
  /** @type {{text: string, isNew: boolean}[]} */
  const parts = [];
  for (const [i, text] of pieces.entries()) {
    const last = parts[parts.length - 1];
    if (last && last.isNew === flags[i]) last.text += text;
    else parts.push({ text, isNew: flags[i] });
  }
  return parts;
}
