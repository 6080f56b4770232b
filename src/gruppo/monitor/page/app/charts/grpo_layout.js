/**
 * Where everything of the GRPO picture goes. Pure: numbers in, numbers out; grpo_picture.js draws.
 */

export const ROW = 34;
const TOP = 62;
const NARROW = 720;

/**
 * @typedef {{x: number, y: number, width: number, height: number}} Box
 * @typedef {{isNarrow: boolean, width: number, height: number, prompt: Box, answers: Box, rewards: Box, advantages: Box, learn: Box,
 *            rowY: (i: number) => number}} Layout
 */

/**
 * Five columns side by side, or, where they would not fit, the prompt above and the lesson below.
 * @param {number} width pixels there are @param {number} numRows
 * @returns {Layout}
 */
export function layoutOf(width, numRows) {
  return width >= NARROW ? wide(width, numRows) : narrow(Math.max(width, 300), numRows);
}

/** @param {number} width @param {number} numRows @returns {Layout} */
function wide(width, numRows) {
  const gap = 22;
  const body = Math.max(numRows * ROW, 190);
  const free = width - 4 * gap - 2;
  const [prompt, answers, rewards, advantages, learn] = [0.14, 0.31, 0.19, 0.18, 0.18].map((share) =>
    Math.floor(free * share),
  );
  let x = 1;
  const next = (size, y = TOP, height = body) => {
    const box = { x, y, width: size, height };
    x += size + gap;
    return box;
  };
  const start = TOP + (body - numRows * ROW) / 2;
  return {
    isNarrow: false,
    width,
    height: TOP + body + 34,
    prompt: next(prompt),
    answers: next(answers),
    rewards: next(rewards),
    advantages: next(advantages),
    learn: next(learn),
    rowY: (i) => start + i * ROW + ROW / 2,
  };
}

/** @param {number} width @param {number} numRows @returns {Layout} */
function narrow(width, numRows) {
  const promptHeight = 76;
  const rowsTop = TOP + promptHeight + 70;
  const body = numRows * ROW;
  const answers = Math.floor(width * 0.3);
  const gap = 12;
  const rest = Math.floor((width - answers - 2 * gap - 2) / 2);
  return {
    isNarrow: true,
    width,
    height: rowsTop + body + 70 + 166,
    prompt: { x: 1, y: TOP - 26, width: width - 2, height: promptHeight },
    answers: { x: 1, y: rowsTop, width: answers, height: body },
    rewards: { x: 1 + answers + gap, y: rowsTop, width: rest, height: body },
    advantages: { x: 1 + answers + 2 * gap + rest, y: rowsTop, width: rest, height: body },
    learn: { x: 1, y: rowsTop + body + 62, width: width - 2, height: 166 },
    rowY: (i) => rowsTop + i * ROW + ROW / 2,
  };
}

/**
 * A scale from values to pixels, with some room at both ends.
 * @param {number[]} values @param {Box} box @param {boolean} [isRoomy] leave room for a number beside zero
 * @param {boolean} [isCentred] zero in the middle
 */
export function scaleOf(values, box, isRoomy = false, isCentred = isRoomy) {
  let [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  if (isCentred) {
    const most = Math.max(Math.abs(low), Math.abs(high), 1e-9);
    [low, high] = [-most, most];
  }
  if (high - low < 1e-12) [low, high] = [low - 0.5, high + 0.5];
  const room = isRoomy ? 40 : isCentred ? 4 : 24;
  return (value) => box.x + room / 2 + ((box.width - room) * (value - low)) / (high - low);
}

/** Characters of 6.6 pixels that fit. @param {number} width */
export const fits = (width) => Math.max(4, Math.floor(width / 6.6));

/** The start and the end of a text: siblings often begin alike, and the answer stands at the end. @param {string} text @param {number} room */
export function middleCut(text, room) {
  const points = Array.from(text);
  if (points.length <= room) return text;
  const head = Math.floor((room - 1) * 0.4);
  return `${points.slice(0, head).join('').trimEnd()}…${points
    .slice(points.length - (room - 1 - head))
    .join('')
    .trimStart()}`;
}

/** @param {string} text @param {number} perLine @param {number} numLines @returns {string[]} */
export function wrap(text, perLine, numLines) {
  const lines = [];
  let rest = Array.from(text);
  while (rest.length && lines.length < numLines) {
    if (rest.length <= perLine) {
      lines.push(rest.join(''));
      return lines;
    }
    const space = rest.slice(0, perLine + 1).lastIndexOf(' ');
    const end = space > perLine / 2 ? space : perLine;
    const isLast = lines.length === numLines - 1;
    lines.push(isLast ? `${rest.slice(0, perLine - 1).join('')}…` : rest.slice(0, end).join(''));
    rest = rest.slice(space > perLine / 2 ? end + 1 : end);
  }
  return lines;
}

/** A curve from one point to another that leaves and arrives level (or upright). @returns {string} */
export function curve(x1, y1, x2, y2, isUpright = false) {
  if (isUpright) {
    const half = (y1 + y2) / 2;
    return `M${x1},${y1} C${x1},${half} ${x2},${half} ${x2},${y2}`;
  }
  const half = (x1 + x2) / 2;
  return `M${x1},${y1} C${half},${y1} ${half},${y2} ${x2},${y2}`;
}

/**
 * Which formula gives the recorded advantages? Only one that does is shown as the rule.
 * @param {any} group of GET groups/{id}
 * @returns {{formula: string, holds: boolean, of: (reward: number) => number}}
 */
export function ruleOf(group) {
  const { mean, std } = group;
  const isScaled = [true, 'group', 'True', 'true'].includes(group.loss?.scale_rewards ?? 'group');
  const of = isScaled ? (reward) => (reward - mean) / (std + 1e-4) : (reward) => reward - mean;
  const holds = group.completions.every(
    ({ reward, advantage }) =>
      reward === null ||
      advantage === null ||
      Math.abs(of(reward) - advantage) < 0.02 * Math.max(1, Math.abs(advantage)),
  );
  return { formula: isScaled ? 'A = (r − mean) / std' : 'A = r − mean', holds, of };
}
