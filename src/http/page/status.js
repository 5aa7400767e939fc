// How everything is: what is wrong first, then shards, nodes and what the last view changes came to.
import { find, make, put, rows, say, show } from './dom.js';
import { count, list, moment, plural, rate, seconds, size, UNKNOWN } from './text.js';

// These cost service or pairs now; the others may later.
const BAD = new Set(['shard-lost', 'shard-without-leader', 'main-down', 'no-cluster', 'node-not-reached', 'silent']);
// So many problems are read aloud; the others are on the page.
const READ_ALOUD = 3;

let last = null;
let said = null;
let silent = null;

export const status = () => last;

// Shows an answer of /v1/status.
export function showStatus(answer) {
  last = answer;
  silent = null;
  draw();
}

// The node does not answer; what is shown is from before.
export function showSilent(words, since) {
  silent = {
    kind: 'silent',
    what: `${words}, for ${seconds((performance.now() - since) / 1000)} by now`,
    do: last ? 'what is shown below is from then; see whether the node runs' : 'see whether the node runs',
  };
  draw();
}

function draw() {
  const problems = [silent, ...(last?.problems ?? [])].filter(Boolean);
  drawProblems(problems);
  find('pulse').className = silent ? 'out' : 'live';
  document.body.classList.toggle('old', Boolean(silent));
  if (!last) return;
  put('asked-text', `${last.address}, ${last.role}${last.main ? ` of ${last.main.address}` : ''}`);
  document.title = `${problems.length ? `(${problems.length}) ` : ''}${last.address} \u00b7 evenkv`;
  drawFigures(last);
  drawShards(last);
  drawNodes(last);
  drawReceipts(last);
}

function drawProblems(problems) {
  show('problems', problems.length > 0);
  const title = problems.length === 0 ? 'All is well' : plural(problems.length, 'problem');
  put('health-title', title);
  find('health').className = problems.length === 0 ? 'well' : problems.some(({ kind }) => BAD.has(kind)) ? 'bad' : 'warned';
  // The same words in another number of seconds are no news.
  const name = ({ kind, what }) => `${kind} ${what.replace(/[\d.]+ (s|ms|min|h)\b/g, '')}`;
  rows(find('problems'), problems, name, () => make('li', {}, make('strong'), make('span')), (row, { kind, what, do: advice }) => {
    row.className = `problem ${BAD.has(kind) ? 'bad' : 'warned'}`;
    put(row.children[0], sentence(what));
    put(row.children[1], sentence(advice));
  });
  const news = problems.map(name).join('\n');
  if (said !== null && news !== said) {
    say(problems.length === 0 ? title : `${title}. ${problems.slice(0, READ_ALOUD).map(({ what }) => sentence(what)).join(' ')}`);
  }
  if (last) said = news;
}

// What a node says begins small where it is a part of a longer one; names of nodes stay as they are.
function sentence(text) {
  const first = /^[a-z]+[ ,;]/.test(text) ? text[0].toUpperCase() + text.slice(1) : text;
  return /[.!?]$/.test(first) ? first : `${first}.`;
}

const sum = (all, of) => (all.some((one) => of(one) === null) ? null : all.reduce((sum, one) => sum + of(one), 0));

function drawFigures({ nodes, shards, epoch, 'repl-factor': factor }) {
  const figures = [
    ['Pairs', shards.length ? count(sum(shards, (shard) => shard['key-count'])) : UNKNOWN],
    ['Requests/s', rate(sum(nodes.filter(({ reachable }) => reachable), (node) => node['requests-per-second'] ?? 0))],
    ['Nodes', `${count(nodes.filter(({ reachable }) => reachable).length)} of ${count(nodes.length)}`],
    ['Shards', count(shards.length)],
    ['Replicas', count(factor)],
    ['Epoch', count(epoch)],
  ];
  rows(find('figures'), figures, ([name]) => name, ([name]) => make('div', {}, make('dt', {}, name), make('dd')), (row, [, figure]) => put(row.lastChild, figure));
}

function drawShards({ shards }) {
  const most = Math.max(1, ...shards.map((shard) => shard['key-count'] ?? 0));
  rows(
    find('shard-list'),
    shards,
    (shard) => shard['shard-id'],
    (shard) => make('li', { 'data-shard': shard['shard-id'] },
      make('span', { class: 'id' }, make('span', { class: 'unseen' }, 'Shard '), shard['shard-id']),
      make('span', { class: 'bar', 'aria-hidden': 'true' }, make('span')),
      make('span', { class: 'count' }, make('span'), make('span', { class: 'unseen' }, ' pairs')),
      make('span', { class: 'more' }, make('span'), make('span'), make('span'))),
    (row, shard) => {
      const [, bar, pairs, more] = row.children;
      const level = ((shard['key-count'] ?? 0) / most) * 100;
      bar.firstChild.style.width = `${level}%`;
      row.classList.toggle('lost', shard.lost);
      put(pairs.firstChild, shard.lost ? 'lost' : count(shard['key-count']));
      put(more.children[0], size(shard.bytes ?? null));
      put(more.children[1], `${rate(shard['requests-per-second'] ?? null)} requests/s`);
      put(more.children[2], kept(shard));
    });
  put('level', level(shards));
}

// Who keeps a shard, and how far the others are.
function kept({ leader, replicas }) {
  const behind = replicas.filter(({ behind }) => behind > 0).map(({ address, behind }) => `${address} ${plural(behind, 'entry', 'entries')} behind`);
  const others = replicas.map(({ address }) => address).filter((address) => address !== leader);
  if (!leader) return `no leader, kept at ${list(others)}`;
  return [`${others.length ? 'led by' : 'at'} ${leader}`, others.length ? `with ${list(others)}` : null, ...behind].filter(Boolean).join(', ');
}

function level(shards) {
  const counts = shards.map((shard) => shard['key-count']);
  if (counts.length === 0) return 'None is known here';
  if (counts.length < 2 || counts.includes(null)) return '';
  const apart = Math.max(...counts) - Math.min(...counts);
  return apart === 0 ? 'All level' : apart === 1 ? 'Level: one pair apart' : `${plural(apart, 'pair')} apart; a view change makes them level`;
}

function health({ reachable, ready }) {
  if (!reachable) return ['bad', 'not reached'];
  if (ready === null) return ['unknown', 'answers'];
  return ready ? ['well', 'ready'] : ['warned', 'not ready'];
}

function memory(node) {
  if (!node.memory) return UNKNOWN;
  const { resident, bound } = node.memory;
  return bound ? `${size(resident)} of ${size(bound)}` : size(resident);
}

// The columns of the tables; those of figures begin with a #.
const NODES = ['Node', 'Health', 'Role', 'Leads', '#Pairs', '#Bytes', '#Requests/s', '#Memory', 'Version'];
const RECEIPTS = [
  '#Epoch', 'Ended', '#Took', '#Nodes', '#Shards', '#Pairs', '#Moved', '#Least possible', '#Copied', '#Longest hold', 'Checksums', 'Id',
];

// Has a table show items, each by the texts of its row.
function table(id, columns, items, nameOf, texts) {
  const kind = (column) => (column[0] === '#' ? 'number' : '');
  const [head, body] = find(id).querySelector('table').children;
  if (!head.firstChild) head.append(make('tr', {}, ...columns.map((column) => make('th', { scope: 'col', class: kind(column) }, column.replace('#', '')))));
  const cells = () => columns.map((column, at) => (at ? make('td', { class: kind(column) }) : make('th', { scope: 'row', class: kind(column) })));
  rows(body, items, nameOf, () => make('tr', {}, ...cells()), (row, item) => texts(item).forEach((text, at) => put(row.children[at], text)));
}

function drawNodes({ nodes }) {
  table('node-table', NODES, nodes, ({ address }) => address, (node) => {
    const led = node.leads.map((id) => `shard ${id}`).concat(node['leads-view'] ? ['the view'] : []);
    return [
      node.address, health(node)[1], node.role, led.length ? list(led) : UNKNOWN, count(node.pairs), size(node.bytes),
      rate(node['requests-per-second']), memory(node), node.version ?? UNKNOWN,
    ];
  });
  nodes.forEach((node, at) => { find('node-table').querySelector('tbody').children[at].children[1].className = `state ${health(node)[0]}`; });
}

function drawReceipts({ receipts, epoch, 'cluster-id': cluster }) {
  show('receipts', receipts.length > 0);
  show('no-receipts', receipts.length === 0);
  put('epoch', epoch === null ? 'This node knows no view' : `Epoch ${count(epoch)} of cluster ${cluster}`);
  table('receipts', RECEIPTS, receipts, (receipt) => receipt['change-id'], (receipt) => [
    count(receipt.epoch), moment(receipt.ended), seconds(receipt.seconds), count(receipt.nodes), count(receipt.shards), count(receipt.keys),
    count(receipt.moved), count(receipt.minimum), count(receipt.copied), seconds(receipt['hold-ms'] / 1000),
    receipt['given-up'].length ? `given up: ${list(receipt['given-up'])}` : receipt['checksums-match'] ? 'match' : 'differ', receipt['change-id'],
  ]);
}
