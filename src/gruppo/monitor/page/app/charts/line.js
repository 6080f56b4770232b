/**
 * LineChart: curves over steps, drawn by uPlot, with a cursor for the keyboard and words for screen readers.
 *
 * A click, or Enter at the cursor, opens the step. Bands are the smallest and largest value behind each point.
 */
import uPlot from '../../vendor/uplot.js';
import { exact, short } from '../format.js';
import { html, useEffect, useMemo, useRef, useState } from '../html.js';
import { useWidth } from '../hooks.js';
import { flat } from '../untrusted.js';
import { lastOf, smooth } from '../series.js';
import { useThemeKey } from '../theme.js';
import { Figure, Swatch } from './figure.js';
import { uplotOptions } from './uplot_options.js';

/**
 * @typedef {{label: string, values: (number|null)[], low?: (number|null)[], high?: (number|null)[]}} Line
 * @param {{
 *   title: string, note?: any, steps: number[], lastSteps?: number[], lines: Line[], format?: (value: any) => string,
 *   onOpen?: (step: number) => void, openWords?: string, marks?: {step: number, label: string}[], height?: number,
 *   window?: number, range?: [number, number], xLabel?: string, value?: any, delta?: any, sync?: string, class?: string,
 *   empty?: any, unit?: string, axisFormat?: (value: any) => string
 * }} props  `window`: smoothing in points; `sync`: charts with the same word share the cursor; `unit`: of the value; `axisFormat`:
 *   for the axis, where `format` is too long
 */
export function LineChart(props) {
  const { title, note, steps, lines, format = short, xLabel = 'step', window: size = 1 } = props;
  const [index, setIndex] = useState(/** @type {number|null} */ (null));
  const drawn = lines
    .filter((line) => line.values.some((value) => value !== null))
    .map((line) => ({ ...line, label: flat(line.label) }));
  const twin = {
    columns: [{ label: xLabel, numeric: true }, ...lines.map((line) => ({ label: line.label, numeric: true }))],
    rows: () => steps.map((_, i) => [stepWords(props, i), ...lines.map((line) => exact(line.values[i]))]).reverse(),
  };
  const value = props.value === undefined && drawn.length ? format(lastOf(drawn[0].values)) : props.value;
  const isEmpty = drawn.length === 0;
  const latest = props.unit ? html`${value} <span class="figure-unit">${props.unit}</span>` : value;
  return html`
    <${Figure} title=${title} name=${title} note=${note} value=${isEmpty ? undefined : latest} delta=${props.delta}
      twin=${twin}
      class=${props.class}
      legend=${
        !isEmpty &&
        html`<${Legend} lines=${drawn} steps=${steps} index=${index} format=${format} title=${title}
      words=${(i) => `${xLabel} ${stepWords(props, i)}`} />`
      }>
      ${
        isEmpty
          ? html`<p class="chart-empty">${props.empty ?? 'Nothing recorded.'}</p>`
          : html`<${Plot} ...${props} lines=${drawn} size=${size} format=${format} onIndex=${setIndex} index=${index}
          xLabel=${xLabel} />`
      }
    <//>
  `;
}

/** The steps behind a point. @param {any} props @param {number} i */
const stepWords = ({ steps, lastSteps }, i) =>
  lastSteps && lastSteps[i] !== steps[i] ? `${steps[i]}–${lastSteps[i]}` : String(steps[i] ?? '');

/** @param {{title: string, lines: Line[], steps: number[], index: number|null, format: (value: any) => string, words: (i: number) => string}} props */
function Legend({ title, lines, steps, index, format, words }) {
  const at = index !== null && index < steps.length ? index : null;
  if (lines.length === 1 && at === null && lines[0].label.toLowerCase() === flat(title).toLowerCase())
    return html`<p class="legend" aria-hidden="true"><span
    class="legend-at">${words(steps.length - 1)}</span></p>`;
  return html`
    <p class="legend" aria-hidden="true">
      <span class="legend-at">${words(at ?? steps.length - 1)}</span>
      ${lines.map(
        (line, i) => html`
          <span class="legend-item"><${Swatch}
            i=${i} /> ${line.label} <b>${at === null ? format(lastOf(line.values)) : format(line.values[at])}</b></span>
        `,
      )}
    </p>
  `;
}

/** The canvas and its keyboard. */
function Plot(props) {
  const {
    title,
    steps,
    lines,
    size,
    height = 164,
    onOpen,
    openWords = 'opens the step',
    onIndex,
    index,
    marks = [],
    range,
    sync,
    format,
    xLabel,
    axisFormat = format,
  } = props;
  const [box, width] = useWidth();
  const theme = useThemeKey();
  const plot = useRef(/** @type {any} */ (null));
  const latest = useRef(props);
  latest.current = props;
  const data = useMemo(() => columns(steps, lines, size), [steps, lines, size]);
  const shape = JSON.stringify([
    lines.map((line) => [line.label, Boolean(line.low)]),
    marks,
    range,
    theme,
    height,
    width > 0,
    format.name,
  ]);

  useEffect(() => {
    if (!box.current || width === 0) return undefined;
    const options = uplotOptions({ width, height, lines, marks, range, sync, format: axisFormat, xLabel });
    options.hooks.setCursor = [
      (u) => {
        const i = u.cursor.idx;
        latest.current.onIndex(u.cursor.left >= 0 && i !== undefined ? i : null);
      },
    ];
    plot.current = new uPlot(options, data, box.current);
    return () => {
      plot.current.destroy();
      plot.current = null;
    };
  }, [shape]);
  useEffect(() => plot.current?.setData(data), [data]);
  useEffect(() => {
    if (plot.current && width > 0) plot.current.setSize({ width, height });
  }, [width]);

  /** @param {number} i */
  const moveTo = (i) => {
    const u = plot.current;
    const at = Math.min(Math.max(i, 0), steps.length - 1);
    const y = lines[0].values[at];
    u?.setCursor({ left: u.valToPos(steps[at], 'x'), top: y === null || y === undefined ? 10 : u.valToPos(y, 'y') });
    onIndex(at);
  };
  const keys = {
    ArrowLeft: () => moveTo((index ?? steps.length) - 1),
    ArrowRight: () => moveTo((index ?? -1) + 1),
    Home: () => moveTo(0),
    End: () => moveTo(steps.length - 1),
    Enter: () => onOpen && index !== null && onOpen(steps[index]),
  };
  const onKeyDown = (event) => {
    const action = keys[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  };
  /** The point under the pointer, not the cursor's: new data take the cursor away, and a tap never had one. */
  const onClick = (event) => {
    const u = plot.current;
    if (!onOpen || !u || steps.length === 0) return;
    onOpen(steps[u.posToIdx(event.clientX - u.over.getBoundingClientRect().left)]);
  };
  const words =
    index === null || index >= steps.length
      ? ''
      : `${xLabel} ${stepWords(props, index)}: ${lines.map((line) => `${line.label} ${format(line.values[index])}`).join(', ')}`;
  return html`
    <div class=${`plot ${onOpen ? 'plot-open' : ''} plot-h${height}`} tabindex="0" role="group"
      aria-roledescription="line chart" data-own-keys
      aria-label=${`${flat(title)}. ${summary(steps, lines, format, xLabel)} Arrow keys move the cursor${onOpen ? `, Enter ${openWords}` : ''}.`}
      onKeyDown=${onKeyDown}
      onClick=${onClick}
      ref=${box}></div>
    <p class="sr-only" aria-live="polite">${words}</p>
  `;
}

/** What the curve does, in one sentence. @param {number[]} steps @param {Line[]} lines @param {(value: any) => string} format @param {string} xLabel */
function summary(steps, lines, format, xLabel) {
  const parts = lines.map((line) => {
    const first = line.values.find((value) => value !== null);
    return `${line.label}: ${format(first)} at first, ${format(lastOf(line.values))} at last.`;
  });
  return `${steps.length} points from ${xLabel} ${steps[0]} to ${steps[steps.length - 1]}. ${parts.join(' ')}`;
}

/** uPlot's columns: x, then per line its band (low, high) if it has one, then its values. */
function columns(steps, lines, size) {
  /** @type {any[]} */
  const data = [steps];
  for (const line of lines) {
    if (line.low) data.push(line.low, line.high);
    data.push(smooth(line.values, size));
  }
  return data;
}
