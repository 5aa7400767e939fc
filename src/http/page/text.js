// Figures, keys and values as people read them. A key is held as a string with a character for each of its bytes: so
// keys compare in the order of the node.
import { make } from './dom.js';

const number = new Intl.NumberFormat('en');
const short = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });

export const UNKNOWN = '\u2013';
const known = (value, text) => (value === null || value === undefined ? UNKNOWN : text(value));

export const count = (value) => known(value, (value) => number.format(value));
export const rate = (value) => known(value, (value) => short.format(value));

export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

export const size = (bytes) =>
  known(bytes, () => {
    const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
    let [value, unit] = [bytes, 0];
    while (value >= 1024 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
    return `${value < 10 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
  });

export const seconds = (value) =>
  known(value, () => {
    if (value < 0.1) return `${short.format(value * 1000)} ms`;
    if (value < 120) return `${short.format(value)} s`;
    return value < 7200 ? `${Math.round(value / 60)} min` : `${Math.round(value / 3600)} h`;
  });

// The time here, in the form of ISO 8601.
const clock = new Intl.DateTimeFormat('sv', { dateStyle: 'short', timeStyle: 'medium' });
export const moment = (text) => known(text, () => clock.format(new Date(text)));

export const list = (texts) => (texts.length < 2 ? texts.join('') : `${texts.slice(0, -1).join(', ')} and ${texts.at(-1)}`);

// --- Bytes

export const toBytes = (key) => Uint8Array.from(key, (byte) => byte.charCodeAt(0));
export const fromBytes = (bytes) => {
  let key = '';
  for (let at = 0; at < bytes.length; at += 8192) key += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return key;
};
export const utf8 = (text) => fromBytes(new TextEncoder().encode(text));
export const base64 = (bytes) => btoa(typeof bytes === 'string' ? bytes : fromBytes(bytes));

// The text of some bytes, or null where they are none.
export function text(bytes) {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
}

// The key of a row of a listing, or of an event.
export const keyOf = (row) => ('key-base64' in row ? atob(row['key-base64']) : utf8(row.key));

// A key as part of a path or query: whatever is not plain is written as its bytes.
export const encoded = (key) =>
  key.replace(/[^A-Za-z0-9_.~-]/g, (byte) => `%${byte.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`);

// What is not seen, or turns the order of what stands beside it: controls, blanks that are none, directions.
const UNSEEN = /[\p{C}\u115f\u1160\u3164\uffa0]|(?! )\p{Z}/gu;
const NAMES = { '\n': '\\n', '\r': '\\r', '\t': '\\t', '\0': '\\0' };
const hex = (value, width) => value.toString(16).padStart(width, '0');
const named = (character) => {
  const code = character.codePointAt(0);
  return NAMES[character] ?? (code < 256 ? `\\x${hex(code, 2)}` : `\\u{${hex(code, 4)}}`);
};

// An element that shows a key: what is text, and what stands for something that cannot be seen.
export function keyElement(key) {
  const plain = text(toBytes(key));
  const [source, pattern] = plain === null ? [key, /[^ -~]/g] : [plain, UNSEEN];
  const element = make('bdi', { class: 'key' });
  let at = 0;
  for (const { 0: unseen, index } of source.matchAll(pattern)) {
    element.append(source.slice(at, index), make('span', { class: 'stands' }, named(unseen)));
    at = index + unseen.length;
  }
  element.append(source.slice(at));
  return element;
}

const DUMPED = 4096;

// Bytes as figures and what of them can be read.
export function dump(bytes) {
  const lines = [];
  for (let at = 0; at < Math.min(bytes.length, DUMPED); at += 16) {
    const row = [...bytes.subarray(at, Math.min(at + 16, DUMPED))];
    const figures = row.map((byte) => hex(byte, 2)).join(' ').padEnd(48);
    lines.push(`${hex(at, 6)}  ${figures} ${row.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : '.')).join('')}`);
  }
  if (bytes.length > DUMPED) lines.push(`and ${plural(bytes.length - DUMPED, 'byte')} more`);
  return lines.join('\n');
}

export const quoted = (argument) => `'${argument.replaceAll("'", "'\\''")}'`;
