// Elements. What comes from a node is put in as text, and never as markup.

export const find = (id) => document.getElementById(id);

export const on = (id, event, listener) => find(id).addEventListener(event, listener);

// Makes an element: attributes by name, those that begin with `on` are listeners; children are elements or texts.
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, '');
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Writes only what differs, so that what was selected or is being read aloud stays.
export function put(place, text) {
  const element = typeof place === 'string' ? find(place) : place;
  if (element.textContent !== text) element.textContent = text;
}

export function show(id, is) {
  find(id).hidden = !is;
}

// Has a list show items: rows are known by a name, made once, brought up to date, and put in the order of the items.
export function rows(parent, items, nameOf, create, update) {
  const known = new Map([...parent.children].map((row) => [row.dataset.name, row]));
  let before = null;
  for (const item of items) {
    const name = nameOf(item);
    const row = known.get(name) ?? create(item);
    row.dataset.name = name;
    known.delete(name);
    update(row, item);
    const place = before ? before.nextSibling : parent.firstChild;
    if (place !== row) parent.insertBefore(row, place);
    before = row;
  }
  for (const row of known.values()) row.remove();
}

// Tells those who listen to the page, once.
export function say(text) {
  find('said').textContent = text;
}

export const pause = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener('abort', () => { clearTimeout(timer); resolve(); }, { once: true });
  });

// Waits until somebody looks at the tab.
export const seen = () =>
  new Promise((resolve) => {
    if (!document.hidden) return resolve();
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener('visibilitychange', look);
      resolve();
    };
    document.addEventListener('visibilitychange', look);
  });
