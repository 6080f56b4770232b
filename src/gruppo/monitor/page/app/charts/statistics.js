/**
 * Charts of the Rewards view: scatter, heat map over time, shares, correlations. SVG and tables, no library.
 */
import { exact, percent, short } from '../format.js';
import { html, useRef, useState } from '../html.js';
import { useWidth } from '../hooks.js';
import { DataTable } from '../parts/table.js';
import { Untrusted, flat } from '../untrusted.js';
import { Figure } from './figure.js';

const HEIGHT = 260;
const EDGE = { left: 46, right: 12, top: 10, bottom: 34 };
const SHAPES = [
  ['first third of the steps', (x, y) => `M${x - 3},${y - 3}h6v6h-6Z`],
  ['middle third', (x, y) => `M${x},${y - 4}L${x + 4},${y + 3}H${x - 4}Z`],
  ['last third', (x, y) => `M${x - 3.4},${y}a3.4,3.4 0 1,0 6.8,0a3.4,3.4 0 1,0 -6.8,0`],
];

/** @param {number[]} values */
const extent = (values) => {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return high > low ? [low, high] : [low - 0.5, high + 0.5];
};

/**
 * Points (x, y) with their age as shape and colour; a click opens the nearest.
 * @param {{title: string, note: string, xs: number[], ys: (number|null)[], steps: number[], ids: string[], xLabel: string, yLabel: string, onOpen: (id: string) => void}} props
 */
export function Scatter({ title, note, xs, ys, steps, ids, xLabel, yLabel, onOpen }) {
  const [box, width] = useWidth();
  const points = ids
    .map((id, i) => ({ id, x: xs[i], y: ys[i], step: steps[i] }))
    .filter((point) => point.y !== null && point.x !== null);
  const twin = {
    columns: [
      'answer',
      { label: 'step', numeric: true },
      { label: xLabel, numeric: true },
      { label: yLabel, numeric: true },
    ],
    rows: () =>
      points.map((point) => [
        html`<button type="button" class="link"
      onClick=${() => onOpen(point.id)}>${point.id}</button>`,
        point.step,
        exact(point.x),
        exact(point.y),
      ]),
  };
  return html`
    <${Figure} title=${title} name=${title} note=${note} twin=${twin}>
      <div class="svg-box" ref=${box}>
        ${
          points.length === 0
            ? html`<p
          class="chart-empty">No scored answers in this range.</p>`
            : width > 0 &&
              html`<${ScatterPlot} points=${points}
          width=${width} title=${title} xLabel=${xLabel} yLabel=${yLabel} onOpen=${onOpen} />`
        }
      </div>
      <p class="legend"
        aria-hidden="true">${SHAPES.map(
          ([label, path], i) => html`<span class="legend-item"><svg width="14"
        height="12"><path d=${path(7, 6)} class=${`age-${i}`} /></svg> ${label}</span>`,
        )}</p>
    <//>
  `;
}

/** @param {any} props */
function ScatterPlot({ points, width, title, xLabel, yLabel, onOpen }) {
  const svg = useRef(null);
  const [near, setNear] = useState(/** @type {any} */ (null));
  const [x0, x1] = extent(points.map((point) => point.x));
  const [y0, y1] = extent(points.map((point) => point.y));
  const [first, last] = extent(points.map((point) => point.step));
  const x = (value) => EDGE.left + 8 + ((width - EDGE.left - EDGE.right - 16) * (value - x0)) / (x1 - x0);
  const y = (value) => HEIGHT - EDGE.bottom - 8 - ((HEIGHT - EDGE.top - EDGE.bottom - 16) * (value - y0)) / (y1 - y0);
  const ages = [[], [], []];
  for (const point of points) {
    const age = Math.min(2, Math.floor((3 * (point.step - first)) / (last - first)));
    ages[age].push(SHAPES[age][1](x(point.x), y(point.y)));
  }
  const find = (event) => {
    const frame = svg.current.getBoundingClientRect();
    const [px, py] = [event.clientX - frame.left, event.clientY - frame.top];
    const distance = (point) => (x(point.x) - px) ** 2 + (y(point.y) - py) ** 2;
    const best = points.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    setNear(distance(best) < 400 ? best : null);
  };
  return html`
    <svg ref=${svg} width=${width} height=${HEIGHT} role="img" aria-label=${`${flat(title)}: ${points.length} answers`}
      class="scatter" onMouseMove=${find} onMouseLeave=${() => setNear(null)} onClick=${() => near && onOpen(near.id)}>
      <${Axes} x=${x} y=${y} xs=${[x0, x1]} ys=${[y0, y1]} width=${width} xLabel=${xLabel} yLabel=${yLabel} />
      ${ages.map((paths, i) => html`<path d=${paths.join('')} class=${`age-${i}`} />`)}
      ${
        near &&
        html`<circle cx=${x(near.x)} cy=${y(near.y)} r="8" class="near" /><text
        x=${Math.min(x(near.x) + 12, width - 150)} y=${Math.max(y(near.y) - 8, 18)}
        class="near-text">step ${near.step}: ${short(near.x)}, ${short(near.y)}</text>`
      }
    </svg>
  `;
}

/** Round numbers inside the range, about `count` of them. @param {number[]} range @param {number} count */
function ticks([low, high], count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((n) => n * power).find((each) => each >= rough) ?? rough;
  const first = Math.ceil(low / size - 1e-9);
  return Array.from({ length: Math.floor(high / size + 1e-9) - first + 1 }, (_, i) => (first + i) * size);
}

/** @param {any} props */
function Axes({ x, y, xs, ys, width, xLabel, yLabel }) {
  return html`
    ${ticks(ys, 4).map(
      (value) => html`<line x1=${EDGE.left} x2=${width - EDGE.right} y1=${y(value)} y2=${y(value)}
      class="grid" /><text x=${EDGE.left - 6} y=${y(value) + 4} text-anchor="end" class="tick">${short(value)}</text>`,
    )}
    ${ticks(xs, width < 420 ? 4 : 6).map(
      (value) => html`<text x=${x(value)} y=${HEIGHT - EDGE.bottom + 16}
      text-anchor="middle" class="tick">${short(value)}</text>`,
    )}
    <text x=${width - EDGE.right} y=${HEIGHT - 4} text-anchor="end" class="tick">${xLabel} →</text>
    <text x=${EDGE.left} y=${EDGE.top} class="tick">↑ ${flat(yLabel)}</text>
  `;
}

/**
 * How the rewards of each round are spread: a column per round, darker where more answers are.
 * @param {{title: string, note: string, steps: number[], values: (number|null)[], onOpen: (step: number) => void}} props
 */
export function Ridge({ title, note, steps, values, onOpen }) {
  const [box, width] = useWidth();
  const known = values.filter((value) => value !== null);
  const rounds = [...new Set(steps)].sort((a, b) => a - b);
  const numBins = 14;
  const [low, high] = known.length ? extent(known) : [0, 1];
  const counts = rounds.map(() => new Array(numBins).fill(0));
  const place = new Map(rounds.map((round, i) => [round, i]));
  for (const [i, value] of values.entries())
    if (value !== null)
      counts[place.get(steps[i])][Math.min(numBins - 1, Math.floor((numBins * (value - low)) / (high - low)))] += 1;
  const bin = (i) =>
    `${short(low + ((high - low) * i) / numBins)} to ${short(low + ((high - low) * (i + 1)) / numBins)}`;
  const twin = {
    columns: [
      { label: 'step', numeric: true },
      ...Array.from({ length: numBins }, (_, i) => ({ label: bin(i), numeric: true })),
    ],
    rows: () => rounds.map((round, i) => [round, ...counts[i]]),
  };
  const cell = {
    width: (width - EDGE.left - EDGE.right) / Math.max(rounds.length, 1),
    height: (HEIGHT - EDGE.top - EDGE.bottom) / numBins,
  };
  return html`
    <${Figure} title=${title} name=${title} note=${note} twin=${twin}>
      <div class="svg-box" ref=${box}>
        ${
          known.length === 0
            ? html`<p class="chart-empty">No scored answers in this range.</p>`
            : width > 0 &&
              html`
          <svg width=${width} height=${HEIGHT} role="img" aria-label=${`${title}: ${rounds.length} rounds`}
            class="ridge">
            ${counts.map((column, i) => {
              const total = column.reduce((a, b) => a + b, 0) || 1;
              return column.map(
                (count, j) =>
                  count > 0 &&
                  html`<rect x=${EDGE.left + i * cell.width}
                y=${HEIGHT - EDGE.bottom - (j + 1) * cell.height} width=${Math.max(cell.width - 1, 1)}
                height=${cell.height - 1}
                class="ridge-cell" fill-opacity=${(0.12 + 0.88 * Math.sqrt(count / total)).toFixed(2)}
                onClick=${() => onOpen(rounds[i])}><title>step ${rounds[i]}: ${count} answers with ${bin(j)}</title>
                </rect>`,
              );
            })}
            ${[0, 0.5, 1].map(
              (share) => html`<text x=${EDGE.left - 6}
              y=${HEIGHT - EDGE.bottom - share * (HEIGHT - EDGE.top - EDGE.bottom) + (share ? 8 : 0)} text-anchor="end"
              class="tick">${short(low + share * (high - low))}</text>`,
            )}
            ${[0, 0.5, 1].map(
              (share) => html`<text x=${EDGE.left + share * (width - EDGE.left - EDGE.right)}
              y=${HEIGHT - EDGE.bottom + 16} text-anchor=${['start', 'middle', 'end'][share * 2]}
              class="tick">${rounds[Math.round(share * (rounds.length - 1))]}</text>`,
            )}
            <text x=${width - EDGE.right} y=${HEIGHT - 4} text-anchor="end" class="tick">step →</text>
          </svg>`
        }
      </div>
    <//>
  `;
}

/** Which function the signal comes from: one bar, with names and numbers. @param {{shares: Record<string, number|null>, names: string[]}} props */
export function ShareBar({ shares, names }) {
  const known = names.filter((name) => (shares[name] ?? null) !== null);
  if (known.length === 0) return html`<p class="chart-empty">No group had a difference in reward.</p>`;
  const total = known.reduce((sum, name) => sum + Math.max(shares[name], 0), 0) || 1;
  let x = 0;
  return html`
    <svg class="share-bar" viewBox="0 0 100 10" preserveAspectRatio="none" width="100%" height="26" aria-hidden="true">
      ${known.map((name) => {
        const width = (100 * Math.max(shares[name], 0)) / total;
        const rect = html`<rect x=${x} y="0" width=${Math.max(width - 0.3, 0)} height="10"
          class=${`fill-${(names.indexOf(name) % 6) + 1}`} />`;
        x += width;
        return rect;
      })}
    </svg>
    <ul
      class="share-names">${known.map(
        (name) => html`<li><span class=${`square fill-${(names.indexOf(name) % 6) + 1}`}>
      </span> <${Untrusted} text=${name} /> <b>${percent(shares[name])}</b></li>`,
      )}</ul>
  `;
}

/** @param {{names: string[], matrix: (number|null)[][]}} props */
export function Correlations({ names, matrix }) {
  const cell = (value) => {
    if (value === null) return html`<span class="corr muted" title="constant: no correlation">–</span>`;
    return html`<span
      class=${`corr corr-${value < 0 ? 'neg' : 'pos'}${Math.min(4, Math.round(Math.abs(value) * 4))}`}>${value < 0 ? '−' : '+'}${Math.abs(value).toFixed(2)}</span>`;
  };
  const rows = matrix.map((row, i) => [html`<b><${Untrusted} text=${names[i]} /></b>`, ...row.map(cell)]);
  return html`<${DataTable} caption="Correlations (Pearson) over the answers"
    columns=${['', ...names.map((label) => ({ label, numeric: true }))]} rows=${rows} perPage=${40} hidden />`;
}
