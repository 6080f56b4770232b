/**
 * A prompt as people read it: text, or messages with their roles.
 */
import { html } from '../html.js';
import { Untrusted, flat } from '../untrusted.js';
import { messagesOf } from './group_parts.js';

/** @param {{prompt: any, raw?: boolean}} props */
export const PromptText = ({ prompt, raw = false }) => html`
  <div class="prompt">
    ${messagesOf(prompt).map(
      (message) => html`
        <div class=${`message ${message.role ? 'has-role' : ''}`}>
          ${message.role && html`<span class="role"><${Untrusted} text=${message.role} /></span>`}
          <pre tabindex="0"
            aria-label=${message.role ? `Message of ${flat(message.role)}` : 'Prompt'}>${
              message.text
                ? html`<${Untrusted}
            text=${message.text} raw=${raw} />`
                : html`<span class="muted">(empty)</span>`
            }</pre>
        </div>
      `,
    )}
    ${
      prompt && prompt.next_offset
        ? html`<p
      class="muted">The first ${prompt.text.length} of ${prompt.num_chars} characters.</p>`
        : null
    }
  </div>
`;
