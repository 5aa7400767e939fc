// The page: asks its node how everything is, while somebody looks. The node answers when that is another thing than it was, once a second at most.
import { find, on, pause, seen } from './dom.js';
import { followChange, startChanges } from './change.js';
import { startKeys } from './keys.js';
import { onToken, request, useToken, words } from './node.js';
import { showSilent, showStatus } from './status.js';

const INTERVAL = 1000;
// So long the node may wait for something to tell, and so long it may take to answer then.
const WAIT = 5;
const PATIENCE = WAIT * 1000 + 4000;

function startToken() {
  const [dialog, input] = [find('token-dialog'), find('token')];
  let isNeeded = false;
  onToken((wasShown) => {
    isNeeded = true;
    const why = wasShown ? 'The node does not know the token that it was shown. ' : '';
    find('token-why').textContent = `${why}A token is kept in this tab only, until the tab is closed.`;
    input.value = '';
    if (!dialog.open) dialog.showModal();
    input.focus();
  });
  on('token-form', 'submit', () => {
    isNeeded = false;
    useToken(input.value.trim());
  });
  // Without one there is nothing to see.
  dialog.addEventListener('close', () => isNeeded && dialog.showModal());
}

async function look() {
  let [answered, tag] = [performance.now(), null];
  for (;;) {
    await seen();
    const began = performance.now();
    try {
      const headers = tag ? { 'If-None-Match': tag, Prefer: `wait=${WAIT}` } : {};
      const answer = await request('GET', '/v1/status', { headers, patience: PATIENCE });
      answered = performance.now();
      if (answer.status === 200) {
        const status = await answer.json();
        tag = answer.headers.get('ETag');
        showStatus(status);
        followChange(status.change);
      }
    } catch (error) {
      tag = null;
      showSilent(words(error), answered);
    }
    await pause(Math.max(INTERVAL / 4, INTERVAL - (performance.now() - began)));
  }
}

for (const field of document.querySelectorAll('input, textarea')) {
  for (const name of ['autocomplete', 'autocapitalize']) field.setAttribute(name, 'off');
  field.spellcheck = false;
}
startToken();
startChanges();
startKeys();
look();
