/**
 * Starts the page: takes the token out of the address, follows the route, shows the view inside the shell.
 */
import { ApiError, whenRefused } from './api.js';
import { html, render, useEffect, useState } from './html.js';
import { parse } from './routes.js';
import { getToken, takeTokenFromAddress } from './session.js';
import { Shell } from './shell.js';
import { applyTheme } from './theme.js';
import { Connect } from './views/connect.js';

/** The route of the address bar. A pasted URL with a token is taken in too. @param {() => void} onToken */
function useRoute(onToken) {
  const [route, setRoute] = useState(() => parse(location.hash));
  useEffect(() => {
    const listener = () => {
      if (takeTokenFromAddress()) onToken();
      setRoute(parse(location.hash));
    };
    addEventListener('hashchange', listener);
    return () => removeEventListener('hashchange', listener);
  }, []);
  return route;
}

function App() {
  const [isConnected, setConnected] = useState(getToken() !== '');
  const route = useRoute(() => setConnected(true));
  useEffect(() => whenRefused(() => setConnected(false)), []);
  if (!isConnected) return html`<${Connect} onToken=${() => setConnected(true)} />`;
  return html`<${Shell} route=${route} />`;
}

/** Errors nobody caught are said on the page instead of leaving it silently stale. */
function reportErrors() {
  addEventListener('unhandledrejection', (event) => {
    if (event.reason instanceof ApiError || event.reason?.name === 'AbortError') event.preventDefault();
  });
}

takeTokenFromAddress();
applyTheme();
reportErrors();
const root = document.getElementById('app');
if (root) {
  root.replaceChildren();
  render(html`<${App} />`, root);
}
