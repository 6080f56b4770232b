/**
 * The one place that binds htm to preact. Everything that draws imports from here.
 * Templates are tagged strings: values become text nodes or properties, never markup.
 */
import { h, render, Fragment } from '../vendor/preact.js';
import htm from '../vendor/htm.js';

export { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from '../vendor/preact-hooks.js';
export { Fragment, h, render };
export const html = htm.bind(h);
