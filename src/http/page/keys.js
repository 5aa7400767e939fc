// The keys: a list of those that begin alike, which follows what is done to them, and one pair to be read and written.
import { find, make, on, pause, put, rows, show } from './dom.js';
import { change, events, get, hasToken, request, words } from './node.js';
import { base64, count, dump, encoded, keyElement, keyOf, plural, quoted, seconds, size, text, toBytes, utf8 } from './text.js';

const PAGE = 50;
// A longer value is not loaded into a field.
const EDITED = 256 * 1024;
// Whatever is done meanwhile, the list is read anew so often at most.
const READ_AGAIN = 500;
const JSON_TYPE = 'application/json';

// What is listed: how many keys at most, and those that there are.
let listing = { prefix: '', limit: PAGE, keys: [], next: null, isRead: false };
// The pair that is shown; without a key it is a new one.
let pair = null;
// What lists and follows now; a listing that is about to be made; whether the keys are looked at.
let reading = null;
let soon = null;
let isInView = false;

export function startKeys() {
  on('find', 'submit', (event) => {
    event.preventDefault();
    listing = { prefix: utf8(find('prefix').value), limit: PAGE, keys: [], next: null, isRead: false };
    restart();
  });
  on('more-keys', 'click', () => {
    listing.limit = Math.min(10_000, listing.limit + PAGE);
    restart();
  });
  on('new-key', 'click', () => {
    open(null);
    find('pair-key').focus();
  });
  on('pair', 'submit', save);
  on('pair', 'input', () => {
    pair.edited = true;
    show('curl', false);
  });
  on('replace', 'click', replace);
  on('read-again', 'click', () => open(pair.key));
  on('copy', 'click', copy);
  on('delete', 'click', () => {
    find('delete-key').replaceChildren(keyElement(pair.key));
    find('delete-dialog').showModal();
    find('keep').focus();
  });
  on('keep', 'click', () => find('delete-dialog').close());
  on('delete-form', 'submit', remove);
  open(null);
  document.addEventListener('visibilitychange', restart);
  new IntersectionObserver((seen) => {
    isInView = seen.at(-1).isIntersecting;
    restart();
  }, { rootMargin: '0px 0px -30%' }).observe(find('keys'));
}

// --- The list

// Lists anew. What is done to the keys is followed only while they are looked at: that costs the node more than all else of the page.
function restart() {
  reading?.abort();
  reading = new AbortController();
  if (!document.hidden) keep(reading.signal);
}

// What is watched begins where the listing began, so nothing is missed.
async function keep(signal) {
  for (let wait = READ_AGAIN; !signal.aborted; ) {
    try {
      const cursor = await read(signal);
      if (!isInView || !cursor) return;
      await events(`/v1/watch?${queried(listing.prefix)}`, { 'Last-Event-ID': cursor }, signal, () => readSoon(signal));
      wait = READ_AGAIN;
    } catch (error) {
      if (signal.aborted) return;
      put('keys-state', words(error));
      wait = Math.min(5000, wait * 2);
    }
    await pause(wait, signal);
  }
}

function readSoon(signal) {
  soon ??= setTimeout(() => {
    soon = null;
    if (!signal.aborted) read(signal).catch(() => readSoon(signal));
  }, READ_AGAIN);
}

const queried = (prefix) => `prefix=${encoded(prefix)}`;

async function read(signal) {
  const asked = listing;
  const page = await get(`/v1/kv?${queried(asked.prefix)}&limit=${asked.limit}`, { signal });
  const before = new Map(asked.keys.map(({ key, etag }) => [key, etag]));
  asked.keys = page.keys.map((row) => ({ ...row, key: keyOf(row), isNews: before.size > 0 && before.get(keyOf(row)) !== row.etag }));
  asked.next = page.next ?? null;
  asked.isRead = true;
  drawList();
  const { length } = asked.keys;
  put('keys-state', `${asked.next === null ? plural(length, 'key') : `the first ${count(length)} keys`}${isInView ? ', live' : ''}`);
  noteChange();
  return page.watch;
}

function drawList() {
  const { keys, next, prefix, isRead } = listing;
  const choose = (key) => make('button', { type: 'button', onclick: () => open(key) }, keyElement(key), make('span', { class: 'quiet' }));
  rows(find('key-list'), keys, ({ key }) => encoded(key), ({ key }) => make('li', {}, choose(key)), (row, { key, bytes, ttl, isNews }) => {
    put(row.firstChild.lastChild, `${size(bytes)}${ttl === undefined ? '' : `, ${seconds(Number(ttl))} left`}`);
    row.firstChild.setAttribute('aria-current', String(pair?.key === key));
    if (isNews) flash(row);
  });
  show('no-keys', isRead && keys.length === 0);
  put('no-keys', prefix === '' ? 'There is no key yet.' : 'No key begins so.');
  show('more-keys', next !== null && listing.limit < 10_000);
}

function flash(row) {
  row.classList.remove('news');
  // Without a look at it in between, the browser would not begin anew.
  void row.offsetWidth;
  row.classList.add('news');
}

// --- The pair

const note = (text) => put('pair-note', text);

// A pair, out of a listing: every key can be named there, while browsers take `.` and `..` in a path for steps. JSON is taken as it stands in the
// answer, since a parser would write its numbers anew.
async function load(key) {
  const listed = listing.keys.find((row) => row.key === key);
  const told = await (await request('GET', `/v1/kv?${queried(key)}&limit=1&watch=false&values=${!(listed?.bytes > EDITED)}`)).text();
  const row = JSON.parse(told).keys[0];
  if (!row || keyOf(row) !== key) return null;
  const pair = { ...row, key, value: null };
  if ('value-base64' in row) return { ...pair, value: toBytes(atob(row['value-base64'])) };
  if (!('value' in row)) return pair;
  const all = utf8(told);
  const from = all.indexOf('"value":') + 8;
  return { ...pair, value: toBytes(all.slice(from, from + row.bytes)) };
}

async function open(key) {
  pair = { key, edited: false };
  const asked = pair;
  find('pair').ariaBusy = 'true';
  note('');
  if (key !== null) {
    try {
      const loaded = await load(key);
      if (pair !== asked) return;
      if (!loaded) {
        open(null);
        return note('The key does not exist any more.');
      }
      Object.assign(pair, loaded);
    } catch (error) {
      note(words(error));
    }
  }
  drawPair();
  drawList();
}

function drawPair() {
  find('pair').ariaBusy = null;
  const { key, bytes, etag, ttl, type = JSON_TYPE, value } = pair;
  const isNew = key === null;
  find('pair-title').replaceChildren(isNew ? 'New key' : keyElement(key));
  show('pair-key-field', isNew);
  find('pair-key').required = isNew;
  if (isNew) find('pair-key').value = '';
  put('pair-about', isNew || bytes === undefined ? '' : `${plural(bytes, 'byte')} \u00b7 ETag ${etag}${ttl === undefined ? '' : ` \u00b7 ends in ${seconds(Number(ttl))}`}`);
  find('pair-type').value = type;
  find('pair-ttl').value = ttl ?? '';
  for (const id of ['delete', 'read-again']) show(id, !isNew);
  show('curl', false);
  const field = find('pair-value');
  const plain = isNew ? '' : value ? text(value) : null;
  field.value = plain ?? '';
  // What the field would give back in other bytes is shown, and not edited.
  drawAs(plain !== null && field.value === plain);
}

function drawAs(isText) {
  pair.isText = isText;
  show('pair-value', isText);
  show('pair-bytes', !isText);
  show('replace', !isText);
  show('save', isText);
  if (isText) return;
  const { value, bytes } = pair;
  put('pair-bytes', value ? dump(value) : `A value of ${size(bytes)} is not loaded: curl or evenkv get reads it.`);
}

function replace() {
  find('pair-value').value = '';
  find('pair-type').value = 'text/plain';
  pair.edited = true;
  drawAs(true);
  find('pair-value').focus();
}

// The key as one line of a batch names it.
const named = (key) => ({ 'key-base64': base64(key) });

function written() {
  const key = pair.key ?? utf8(find('pair-key').value);
  return { key, type: find('pair-type').value.trim() || 'application/octet-stream', ttl: find('pair-ttl').value.trim(), value: utf8(find('pair-value').value) };
}

async function save(event) {
  event.preventDefault();
  const { key, type, ttl, value } = written();
  const isNew = pair.key === null;
  if (ttl !== '' && !(Number(ttl) > 0)) return note('Seconds to live are a number above 0, or nothing: then it stays for ever.');
  const line = { op: 'put', ...named(key), 'value-base64': base64(value), type };
  if (ttl !== '') line.ttl = Number(ttl);
  // Nothing that somebody else has written meanwhile is lost.
  if (isNew) line['if-none-match'] = '*';
  else line['if-match'] = pair.etag;
  try {
    await change(line);
    await open(key);
    note(isNew ? 'Added.' : 'Saved.');
  } catch (error) {
    const reason = error.status !== 412 ? words(error)
      : isNew ? 'There is such a key already: choose it in the list to change it.' : 'It was written or deleted since you have read it. Read it again first.';
    note(reason);
  }
}

async function remove(event) {
  event.preventDefault();
  find('delete-dialog').close();
  try {
    await change({ op: 'delete', ...named(pair.key), 'if-match': pair.etag });
    await open(null);
    note('Deleted.');
    find('new-key').focus();
  } catch (error) {
    note(error.status === 412 ? 'It was written since you have read it. Read it again first.' : words(error));
  }
}

// The pair that is shown was changed by somebody: read anew, unless something was typed.
async function noteChange() {
  if (pair.key === null || pair.etag === undefined || !pair.key.startsWith(listing.prefix)) return;
  const row = listing.keys.find(({ key }) => key === pair.key);
  if (row && row.etag === pair.etag) return;
  if (!row && listing.next !== null && pair.key > (listing.keys.at(-1)?.key ?? '')) return;
  if (!pair.edited && row) return open(pair.key);
  note(row ? 'Somebody has written it meanwhile.' : 'It is gone meanwhile.');
}

// --- The same with curl

function command() {
  const { key, type, ttl, value } = written();
  const parts = ['curl -s'];
  if (key === '.' || key === '..') parts.push('--path-as-is');
  if (hasToken()) parts.push('-H "Authorization: Bearer $EVENKV_TOKEN"');
  const target = quoted(`${location.origin}/v1/kv/${encoded(key)}${pair.edited && ttl ? `?ttl=${encodeURIComponent(ttl)}` : ''}`);
  if (pair.key !== null && !pair.edited) return [...parts, target].join(' ');
  parts.push('-X PUT', `-H ${quoted(`Content-Type: ${type}`)}`, target);
  // An argument has no NUL.
  parts.push(value.includes('\0') ? '--data-binary @FILE' : `--data-binary ${quoted(text(toBytes(value)))}`);
  return parts.join(' ');
}

async function copy() {
  const field = find('curl');
  field.value = command();
  show('curl', true);
  try {
    await navigator.clipboard.writeText(field.value);
    note('Copied.');
  } catch {
    // Without TLS a browser may keep the clipboard to itself.
    field.focus();
    field.select();
    note('Selected: copy it from the field.');
  }
}
