/**
 * How uPlot draws our curves: colours of the theme, dashes, bands, marks. No state, no data.
 */
import uPlot from '../../vendor/uplot.js';
import { colours } from '../theme.js';
import { DASHES } from './figure.js';

const FONT = '11px system-ui, sans-serif';
const NAMES = ['c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'muted', 'grid', 'band'];

/**
 * @param {{width: number, height: number, lines: any[], marks: {step: number, label: string}[],
 *          range?: [number, number], sync?: string, xLabel: string, format: (value: any) => string}} given
 * @returns {any}
 */
export function uplotOptions({ width, height, lines, marks, range, sync, format, xLabel }) {
  const paint = colours(NAMES);
  /** @type {any[]} */
  const series = [{}];
  /** @type {any[]} */
  const bands = [];
  for (const [i, line] of lines.entries()) {
    const stroke = paint[`c${(i % 6) + 1}`];
    if (line.low) {
      const at = series.length;
      series.push(invisible(), invisible());
      bands.push({ series: [at + 1, at], fill: alpha(stroke, 0.16) });
    }
    series.push({
      label: line.label,
      stroke,
      width: 2,
      dash: DASHES[i % 6],
      spanGaps: true,
      points: { show: (u, at) => sparse(u, at), size: 5, fill: stroke, stroke },
    });
  }
  const axis = { stroke: paint.muted, font: FONT, grid: { stroke: paint.grid, width: 1 }, ticks: { show: false } };
  return {
    width,
    height,
    series,
    bands,
    padding: [8, 16, 0, 0],
    legend: { show: false },
    scales: { x: { time: false, range: xRange }, y: { range: yRange(range) } },
    axes: [
      {
        ...axis,
        size: 24,
        gap: 4,
        space: 48,
        incrs: STEPS,
        values: (_, ticks) => ticks.map(format0),
        label: xLabel,
        labelFont: FONT,
        labelSize: 14,
        labelGap: 0,
      },
      {
        ...axis,
        size: 46,
        gap: 4,
        space: 28,
        values: (_, ticks) => ticks.map((tick) => (tick === null ? '' : format(tick))),
      },
    ],
    cursor: {
      y: false,
      drag: { x: false, y: false },
      points: { size: 7, fill: (u, at) => u.series[at]._stroke ?? paint.c1 },
      ...(sync ? { sync: { key: sync, setSeries: false } } : {}),
    },
    hooks: { draw: [(u) => drawMarks(u, marks, paint.muted)] },
  };
}

/** Steps are whole numbers. */
const STEPS = [1, 2, 5].flatMap((n) => [1, 10, 100, 1e3, 1e4, 1e5, 1e6].map((e) => n * e)).sort((a, b) => a - b);

/** @param {number} tick */
const format0 = (tick) => (tick >= 10000 ? `${tick / 1000}k` : String(tick));

const invisible = () => ({ stroke: 'transparent', width: 0, points: { show: false } });

/** Points where a line alone would hide that there are few values, or would not be seen at all. */
function sparse(u, at) {
  const values = u.data[at].filter((value) => value !== null).length;
  return values > 0 && (values <= 30 || values * 3 < u.data[0].length) && values < 80;
}

/** @param {string} colour rgb(...) @param {number} share */
const alpha = (colour, share) => colour.replace('rgb(', 'rgba(').replace(')', `, ${share})`);

/** A single step still gets an axis. */
const xRange = (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]);

/** @param {[number, number]|undefined} range what should be in sight at least */
function yRange(range) {
  return (_, low, high) => {
    const [from, to] = [Math.min(low ?? 0, range?.[0] ?? Infinity), Math.max(high ?? 1, range?.[1] ?? -Infinity)];
    if (from === to) return from === 0 ? [-0.05, 1] : [from - Math.abs(from) * 0.1, to + Math.abs(to) * 0.1];
    return uPlot.rangeNum(from, to, {
      min: { pad: 0.06, soft: 0, mode: from >= 0 ? 1 : 3 },
      max: { pad: 0.08, mode: 3 },
    });
  };
}

/** Where an attempt began: a dotted line with its words. */
function drawMarks(u, marks, colour) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.strokeStyle = colour;
  ctx.fillStyle = colour;
  ctx.font = `${10 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textAlign = 'left';
  ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
  for (const mark of marks) {
    const x = u.valToPos(mark.step, 'x', true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.fillText(mark.label, x + 3 * devicePixelRatio, bbox.top + 10 * devicePixelRatio);
  }
  ctx.restore();
}
