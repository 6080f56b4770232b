/**
 * Knows when a run's files have changed: server-sent events read with fetch (EventSource cannot send the token),
 * and polling where that does not work. It carries no data; views ask again for what they show.
 */
import { getJson, join, open } from './api.js';

const POLL_MS = 5000;
const SILENCE_MS = 45000;
const RETRY_MS = 3000;
/** After so many streams that broke at once, poll instead. */
const MAX_BROKEN = 3;
/** What broke streams may be over: after so many polls one is tried, and given this long for its first word. */
const POLLS_PER_TRY = 10;
const TRY_MS = 5000;

/** @typedef {'connecting'|'live'|'polling'|'offline'|'paused'} Mode */
/** @typedef {{metrics: number, events: number, rollouts: number, state: number, mode: Mode}} Versions  counters */

/** One run, watched. `onChange(versions)` is called after each change; `close` ends it. */
export class LiveRun {
  /** @param {string} run @param {(versions: Versions) => void} onChange */
  constructor(run, onChange) {
    this.run = run;
    this.onChange = onChange;
    /** @type {Versions} */
    this.versions = { metrics: 0, events: 0, rollouts: 0, state: 0, mode: 'connecting' };
    /** @type {Record<string, any>|null} */
    this.seen = null;
    this.numBroken = 0;
    this.numPolls = 0;
    this.isClosed = false;
    this.onVisibility = () => (document.hidden ? this.pause() : this.start());
    document.addEventListener('visibilitychange', this.onVisibility);
    this.start();
  }

  /** Browsers allow six connections per server: a hidden tab gives its own back. */
  pause() {
    this.abort?.abort();
    clearTimeout(this.timer);
    this.setMode('paused');
  }

  close() {
    this.isClosed = true;
    document.removeEventListener('visibilitychange', this.onVisibility);
    this.abort?.abort();
    clearTimeout(this.timer);
  }

  start() {
    this.abort?.abort();
    this.abort = new AbortController();
    const { signal } = this.abort;
    const isPolling = this.numBroken >= MAX_BROKEN && this.numPolls < POLLS_PER_TRY;
    void (isPolling ? this.poll(signal) : this.stream(signal));
  }

  /** @param {number} delay */
  again(delay) {
    if (this.isClosed || document.hidden) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.start(), delay);
  }

  /** @param {AbortSignal} signal */
  async stream(signal) {
    let numEvents = 0;
    const silence = new AbortController();
    const either = AbortSignal.any([signal, silence.signal]);
    let alarm = setTimeout(() => silence.abort(), this.numBroken < MAX_BROKEN ? SILENCE_MS : TRY_MS);
    this.numPolls = 0;
    try {
      const response = await open(`api/runs/${join(this.run)}/stream`, either);
      for await (const message of messages(response)) {
        clearTimeout(alarm);
        alarm = setTimeout(() => silence.abort(), SILENCE_MS);
        if (message.event !== 'change') continue;
        numEvents += 1;
        this.numBroken = 0;
        this.setMode('live');
        this.take(JSON.parse(message.data));
      }
    } catch {
      // Unreachable, refused or cut: what follows decides. A stream that carried events may simply be reopened.
    } finally {
      clearTimeout(alarm);
    }
    if (signal.aborted) return;
    if (numEvents === 0) this.numBroken += 1;
    this.again(numEvents ? 0 : RETRY_MS);
  }

  /** @param {AbortSignal} signal */
  async poll(signal) {
    this.numPolls += 1;
    try {
      const summary = await getJson(`runs/${join(this.run)}`, {}, signal);
      this.setMode('polling');
      const { updated, state } = summary;
      this.take({ metrics: updated, events: updated, rollouts: updated, state });
    } catch {
      if (!signal.aborted) this.setMode('offline');
    }
    if (!signal.aborted) this.again(POLL_MS);
  }

  /** @param {Record<string, any>} now the fields of a change */
  take(now) {
    const before = this.seen;
    this.seen = now;
    if (!before) return;
    const next = { ...this.versions };
    let isNew = false;
    for (const field of /** @type {const} */ (['metrics', 'events', 'rollouts', 'state'])) {
      if (before[field] === now[field]) continue;
      next[field] += 1;
      isNew = true;
    }
    if (before.tokens !== now.tokens) next.rollouts += 1;
    if (isNew || before.tokens !== now.tokens) this.tell(next);
  }

  /** @param {Mode} mode */
  setMode(mode) {
    if (this.versions.mode !== mode) this.tell({ ...this.versions, mode });
  }

  /** @param {Versions} versions */
  tell(versions) {
    this.versions = versions;
    if (!this.isClosed) this.onChange(versions);
  }
}

/**
 * The messages of a text/event-stream; comments come as empty messages, so that silence can be told from life.
 * @param {Response} response
 */
async function* messages(response) {
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  if (!reader) return;
  let buffer = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value.replace(/\r\n?/g, '\n');
    const blocks = buffer.split('\n\n');
    buffer = blocks.pop() ?? '';
    for (const block of blocks) {
      const message = { event: '', data: '' };
      for (const line of block.split('\n')) {
        const [, field, rest] = /^(event|data): ?(.*)$/.exec(line) ?? [];
        if (field) message[field] += rest;
      }
      yield message;
    }
  }
}
