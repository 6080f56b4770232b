/**
 * Connect: what one sees without a token, or with one of a server that is gone. It asks for the token and tries it.
 */
import { getJson } from '../api.js';
import { html, useState } from '../html.js';
import { useTitle } from '../hooks.js';
import { setToken } from '../session.js';

/** @param {{onToken: () => void}} props */
export function Connect({ onToken }) {
  const [words, setWords] = useState('');
  const [problem, setProblem] = useState('');
  useTitle('Connect');
  const connect = async (event) => {
    event.preventDefault();
    setToken(words.replace(/^.*#token=/, '').replace(/[/&].*$/, ''));
    try {
      await getJson('runs');
      onToken();
    } catch (error) {
      setProblem(
        error.status === 401
          ? 'The server does not know this token. It prints a new one at each start.'
          : error.message,
      );
    }
  };
  return html`
    <main class="connect">
      <img src="page/icon.svg" width="48" height="48" alt="" />
      <h1>gruppo monitor</h1>
      <p>
        This page needs the access token of the running server. Open the address that <code>gruppo monitor</code> printed: it ends in
        <code>#token=...</code>. Or paste it here.
      </p>
      <form onSubmit=${connect}>
        <label for="token">Token or address</label>
        <input id="token" type="password" autocomplete="off" spellcheck="false" value=${words}
          onInput=${(event) => setWords(event.currentTarget.value)} />
        <button type="submit" class="primary" disabled=${words.trim() === ''}>Connect</button>
      </form>
      ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    </main>
  `;
}
