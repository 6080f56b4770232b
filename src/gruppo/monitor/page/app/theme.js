/**
 * Light, dark, or as the system says; and the theme's colours for canvases, which cannot read CSS variables.
 */
import { useEffect, useState } from './html.js';

const KEY = 'gruppo-theme';
/** @typedef {'auto'|'light'|'dark'} Theme */
/** @type {Theme[]} */
export const THEMES = ['auto', 'light', 'dark'];

const system = matchMedia('(prefers-color-scheme: dark)');
/** @type {Set<() => void>} */
const listeners = new Set();
const tell = () => listeners.forEach((listener) => listener());
system.addEventListener('change', tell);

/** @returns {Theme} */
export function getTheme() {
  const kept = localStorage.getItem(KEY);
  return kept === 'light' || kept === 'dark' ? kept : 'auto';
}

/** @param {Theme} theme */
export function setTheme(theme) {
  localStorage.setItem(KEY, theme);
  applyTheme();
  tell();
}

export function applyTheme() {
  document.documentElement.dataset.theme = getTheme();
}

/** Changes whenever the colours do. @returns {string} */
export function useThemeKey() {
  const now = () => `${getTheme()}/${system.matches}`;
  const [key, setKey] = useState(now);
  useEffect(() => {
    const listener = () => setKey(now());
    listeners.add(listener);
    return () => void listeners.delete(listener);
  }, []);
  return key;
}

/** CSS variables as colours that a canvas takes. @param {string[]} names @returns {Record<string, string>} */
export function colours(names) {
  const probe = document.createElement('span');
  probe.hidden = true;
  document.body.append(probe);
  const found = Object.fromEntries(
    names.map((name) => {
      probe.style.color = `var(--${name})`;
      return [name, getComputedStyle(probe).color];
    }),
  );
  probe.remove();
  return found;
}
