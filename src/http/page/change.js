// A view change: the plan first, then carrying it out, then how far it is.
import { find, make, on, pause, put, say, show } from './dom.js';
import { get, request, words } from './node.js';
import { count, list, plural, seconds } from './text.js';
import { status } from './status.js';

const PATH = '/kv-store/view-change';
const RUNS = new Set(['preparing', 'counting', 'moving', 'finishing', 'blocked']);
const LOOK_AGAIN = 500;
// A node plans within its own time for requests, and longer where others are slow to answer.
const PATIENCE = 60_000;

const PHASES = {
  preparing: 'The nodes prepare.',
  counting: 'The pairs are counted.',
  moving: 'Pairs move.',
  finishing: 'The new view is agreed on.',
  blocked: 'It makes no progress.',
};

let wanted = [];
let followed = null;

export function startChanges() {
  const dialog = find('change-dialog');
  on('open-change', 'click', open);
  on('close-change', 'click', () => dialog.close());
  on('add', 'click', add);
  on('add-node', 'keydown', (event) => {
    if (event.key !== 'Enter') return;
    event.preventDefault();
    add();
  });
  on('factor', 'input', forgetPlan);
  on('losses', 'change', forgetPlan);
  on('make-plan', 'click', plan);
  on('carry-out', 'click', carryOut);
  // Enter in a field asks for the plan; only its own button carries it out.
  on('change-form', 'submit', (event) => {
    event.preventDefault();
    plan();
  });
  on('cancel-change', 'click', cancel);
}

function open() {
  const known = status();
  wanted = (known?.nodes ?? []).filter(({ role }) => role !== 'passive' && role !== 'follower').map(({ address }) => address);
  find('factor').value = known?.['repl-factor'] ?? 1;
  const lost = (known?.shards ?? []).filter((shard) => shard.lost || !shard.leader);
  show('losses', lost.length > 0);
  find('losses').replaceChildren(
    make('legend', {}, 'Shards that are not served'),
    ...lost.map((shard) => make('label', { class: 'choice' }, make('input', { type: 'checkbox', value: shard['shard-id'] }),
      `Go on without the pairs of shard ${shard['shard-id']}: they are given up for good`)));
  drawWanted();
  forgetPlan();
  find('change-dialog').showModal();
  find('add-node').focus();
}

function drawWanted() {
  find('wanted').replaceChildren(...wanted.map((address) => make('li', {}, make('span', {}, address),
    make('button', { type: 'button', 'aria-label': `Remove ${address}`, onclick: () => remove(address) }, '\u00d7'))));
}

function remove(address) {
  const at = wanted.indexOf(address);
  wanted = wanted.filter((one) => one !== address);
  drawWanted();
  forgetPlan();
  (find('wanted').children[Math.min(at, wanted.length - 1)]?.querySelector('button') ?? find('add-node')).focus();
}

function add() {
  const input = find('add-node');
  const named = input.value.split(/[\s,]+/).filter(Boolean).filter((address) => !wanted.includes(address));
  wanted = wanted.concat(named);
  input.value = '';
  input.focus();
  drawWanted();
  forgetPlan();
}

// What has been planned is not what is asked for any more.
function forgetPlan() {
  show('plan', false);
  show('carry-out', false);
  show('make-plan', true);
  put('change-note', '');
}

function asked() {
  const body = { view: wanted, 'repl-factor': Number(find('factor').value) };
  const given = [...find('losses').querySelectorAll('input:checked')].map((box) => box.value);
  if (given.length) body['accept-loss'] = given;
  return body;
}

async function send(body, headers = {}) {
  return (await request('PUT', PATH, { body: JSON.stringify(body), headers: { 'Content-Type': 'application/json', ...headers }, patience: PATIENCE })).json();
}

// One request at a time, and what came of it in words.
async function busy(button, work) {
  if (button.ariaBusy) return;
  button.ariaBusy = 'true';
  put('change-note', '');
  try {
    await work();
  } catch (error) {
    put('change-note', words(error));
  }
  button.ariaBusy = null;
}

function plan() {
  // What was typed and not added is meant, too.
  if (find('add-node').value.trim()) add();
  return busy(find('make-plan'), async () => {
    const body = asked();
    const planned = await send({ ...body, 'dry-run': true });
    if (JSON.stringify(body) !== JSON.stringify(asked())) return;
    drawPlan(planned);
    show('plan', true);
    show('make-plan', false);
    show('carry-out', true);
    find('plan').focus();
  });
}

function drawPlan({ keys, moved, minimum, copied, shards, moves }) {
  const most = Math.max(1, ...shards.flatMap((shard) => [shard['key-count'] ?? 0, shard['key-count-planned'] ?? 0]));
  const bar = (name, value) => {
    const level = make('span');
    level.style.width = `${((value ?? 0) / most) * 100}%`;
    return make('span', { class: `bar ${name}`, 'aria-hidden': 'true' }, level);
  };
  const row = (shard) => make('tr', {},
    make('th', { scope: 'row' }, shard['shard-id']),
    make('td', { class: 'number' }, shard['key-count'] === null ? 'new' : count(shard['key-count'])),
    make('td', { class: 'number' }, count(shard['key-count-planned'])),
    make('td', { class: 'levels' }, bar('before', shard['key-count']), bar('after', shard['key-count-planned'])),
    make('td', {}, list(shard.replicas)));
  const head = (text, kind) => make('th', { scope: 'col', class: kind }, text);
  const least = moved === minimum ? 'the least possible' : `the least possible are ${count(minimum)}`;
  find('plan').replaceChildren(
    make('h3', {}, moved === 0 ? `None of ${plural(keys, 'pair')} moves to another shard` : `${count(moved)} of ${plural(keys, 'pair')} move, ${least}`),
    make('p', { class: 'quiet' }, `${plural(copied, 'copy', 'copies')} in all. Clients read and write meanwhile.`),
    make('table', {},
      make('thead', {}, make('tr', {}, head('Shard'), head('Now', 'number'), head('Then', 'number'), make('td', { class: 'levels' }), head('Nodes then'))),
      make('tbody', {}, ...shards.map(row))),
    ...(moves.length ? [make('ul', { class: 'moves' }, ...moves.map(({ from, to, pairs, ranges }) =>
      make('li', {}, `${plural(pairs, 'pair')} from shard ${from} to shard ${to}, in ${plural(ranges, 'range')}`)))] : []));
}

function carryOut() {
  return busy(find('carry-out'), async () => {
    const answer = await send(asked(), { Prefer: 'respond-async' });
    find('change-dialog').close();
    show('change-result', false);
    follow(answer['change-id'], true);
  });
}

// Follows whatever view change runs.
export function followChange(change) {
  if (change && followed !== change['change-id']) follow(change['change-id'], false);
}

async function follow(id, isOwn) {
  followed = id;
  show('change-result', false);
  show('running', true);
  if (isOwn) find('running').focus();
  while (followed === id) {
    try {
      const told = await get(PATH);
      const named = told['change-id'] ?? told.receipt?.['change-id'];
      // It may not have heard of it yet.
      if (named === id && !RUNS.has(told.phase)) return end(told);
      if (named === id) drawRunning(told);
    } catch (error) {
      put('running-more', `${words(error)}; asking again`);
    }
    await pause(LOOK_AGAIN);
  }
}

function drawRunning({ phase, moved, total, piece, 'pairs-per-second': speed, 'remaining-seconds': left, 'waits-for': waits, 'blocked-by': blocked }) {
  const bar = find('running-bar');
  find('running').classList.toggle('blocked', phase === 'blocked');
  put('running-what', blocked ? `${PHASES[phase]} ${blocked}.` : PHASES[phase] ?? phase);
  bar.max = Math.max(1, total ?? 1);
  bar.value = moved ?? 0;
  const more = [
    total ? `${count(moved)} of ${plural(total, 'pair')}` : null,
    speed ? `${count(speed)} a second` : null,
    left === null || left === undefined ? null : `about ${seconds(left)} left`,
    piece ? `piece ${count(piece.number)} of ${count(piece.of)}, from shard ${piece.from} to shard ${piece.to}${piece.attempt > 1 ? `, attempt ${piece.attempt}` : ''}` : null,
    waits && waits.seconds >= 1 ? `waits for ${waits.node} (${waits.order}), for ${seconds(waits.seconds)}` : null,
  ];
  put('running-more', more.filter(Boolean).join(' \u00b7 '));
}

function end({ phase, receipt, error }) {
  const hadFocus = find('running').contains(document.activeElement);
  show('running', false);
  const result = find('change-result');
  const text = phase === 'finished' && receipt
    ? `The view has changed, epoch ${count(receipt.epoch)}. ${plural(receipt.moved, 'pair')} moved${receipt.moved === receipt.minimum ? ', the least possible' : ''}; ` +
      `what arrived ${receipt['checksums-match'] ? 'is' : 'is not'} what was sent; no key was held up for longer than ${seconds(receipt['hold-ms'] / 1000)}.`
    : `The view change is ${phase}${error ? `: ${error}` : ''}.`;
  put(result, text);
  result.className = `result ${phase === 'finished' ? 'well' : 'warned'}`;
  show('change-result', true);
  say(text);
  if (hadFocus) find('open-change').focus();
}

async function cancel() {
  try {
    await request('DELETE', PATH);
  } catch (error) {
    put('running-more', words(error));
    say(words(error));
  }
}
