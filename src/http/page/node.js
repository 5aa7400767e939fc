// The node that the page comes from: all requests go there, and to no other. A token is kept in this tab, and is shown in a header.

const TOKEN = 'evenkv-token';
const PATIENCE = 10_000;

// The node has answered, and does not do it.
export class Refused extends Error {
  constructor(status, words, body) {
    super(words);
    this.status = status;
    this.body = body;
  }
}

export const hasToken = () => sessionStorage.getItem(TOKEN) !== null;

let given = null;
let ask = () => {};

// What is done where a token is needed: `wanted` is called once, until there is one.
export function onToken(wanted) {
  ask = wanted;
}

export function useToken(token) {
  sessionStorage.setItem(TOKEN, token);
  given?.resolve();
  given = null;
}

function tokenNeeded(was) {
  // Another request may have got one meanwhile.
  if (sessionStorage.getItem(TOKEN) !== was) return Promise.resolve();
  if (!given) {
    given = {};
    given.promise = new Promise((resolve) => { given.resolve = resolve; });
    ask(was !== null);
  }
  return given.promise;
}

// Asks the node, again where it wants a token; returns what it answers where that is no error.
export async function request(method, path, { body, headers = {}, signal, patience = PATIENCE } = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const shown = token === null ? headers : { ...headers, Authorization: `Bearer ${token}` };
    const signals = [signal, patience ? AbortSignal.timeout(patience) : null].filter(Boolean);
    const answer = await fetch(path, {
      method, body, headers: shown, cache: 'no-store', credentials: 'omit', redirect: 'error', signal: AbortSignal.any(signals),
    });
    if (answer.status === 401) {
      await tokenNeeded(token);
      continue;
    }
    if (!answer.ok && answer.status !== 304) throw await refused(answer);
    return answer;
  }
}

async function refused(answer) {
  const text = await answer.text();
  let body = {};
  try {
    body = JSON.parse(text);
  } catch {
    // What stands between the page and the node may have words of its own.
  }
  const said = body.detail ?? body.error ?? `The answer is ${answer.status} ${answer.statusText}`;
  // Who is away stands in one, and what that means in the other.
  return new Refused(answer.status, answer.status === 503 && body.title ? `${body.title}: ${said}` : said, body);
}

export const get = async (path, options) => (await request('GET', path, options)).json();

// Does one thing to one key, whatever its bytes are: a path cannot name every key, since browsers take `.` and `..` for steps.
export async function change(line) {
  const answer = await request('POST', '/v1/batch', { body: `${JSON.stringify(line)}\n`, headers: { 'Content-Type': 'application/x-ndjson' } });
  const told = JSON.parse((await answer.text()).split('\n')[0]);
  if (told.status >= 400) {
    const unclear = told.outcome === 'unknown' ? '. It may have been done all the same' : '';
    throw new Refused(told.status, told.error + unclear, told);
  }
  return told;
}

// Tells of each server-sent event (HTML, section 9.2) by its name, until the stream ends.
export async function events(path, headers, signal, told) {
  const answer = await request('GET', path, { headers, signal, patience: 0 });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ''; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split('\n');
    rest = lines.pop();
    for (const line of lines) if (line.startsWith('event: ')) told(line.slice(7));
  }
}

// What went wrong, in words.
export function words(error) {
  if (error instanceof Refused) return error.message;
  if (error.name === 'TimeoutError') return `The node has not answered within ${PATIENCE / 1000} s`;
  return 'The node does not answer';
}
