// Elements, and words for values. Text goes in as text only: no name becomes markup.

const SVG = ['svg', 'path', 'rect', 'text', 'g', 'title'];

// An element: properties that begin with `on` listen, others are attributes; false leaves one out.
export function h(tag, properties, ...children) {
  const made = SVG.includes(tag)
    ? document.createElementNS('http://www.w3.org/2000/svg', tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (name === 'value') made.value = value;
    else if (value !== false && value != null) made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children.flat(3).filter((c) => c != null && c !== false));
  return made;
}

// Show other children: focus and what is unfolded stay where they were.
export function paint(root, ...children) {
  const active = root.contains(document.activeElement) && document.activeElement.dataset.key;
  const open = new Set([...root.querySelectorAll('details[open]')].map((d) => d.dataset.key));
  root.replaceChildren(...children.flat(3).filter((c) => c != null && c !== false));
  for (const part of root.querySelectorAll('details')) {
    if (open.has(part.dataset.key)) part.open = true;
  }
  if (active) root.querySelector(`[data-key="${CSS.escape(active)}"]`)?.focus();
}

export const button = (label, act, more) =>
  h('button', { type: 'button', class: 'scalai-button', onclick: act, 'data-key': label, ...more }, label);

const MARKS = { // status -> sign and tone, as scalai_nb/show.py has them
  pending: ['·', 'plain'], running: ['▶', 'info'], completed: ['✔', 'good'], cached: ['=', 'good'],
  failed: ['✘', 'bad'], not_run: ['–', 'plain'], skipped: ['↷', 'plain'], cancelled: ['■', 'warn'],
  lost: ['?', 'bad'], stale: ['!', 'warn'], damaged: ['?', 'bad'], unreadable: ['?', 'bad'],
};

export const sign = (status) => (MARKS[status] ?? MARKS.pending)[0];
export const tone = (status) => (MARKS[status] ?? MARKS.pending)[1];

// A status as a sign, a word and a colour.
export const state = (status) =>
  h('span', { class: `scalai-state scalai-${tone(status)}` },
    h('span', { 'aria-hidden': 'true' }, sign(status)), ` ${String(status).replace('_', ' ')}`);

export function table(heads, rows) {
  const right = (name) => (name.endsWith('>') ? 'scalai-right' : false);
  const label = (name) => name.replace('>', '');
  return h('table', {},
    h('thead', {}, h('tr', {}, heads.map((n) => h('th', { scope: 'col', class: right(n) }, label(n))))),
    h('tbody', {}, rows.map((row) =>
      h('tr', {}, row.map((cell, i) => h('td', { class: right(heads[i]) }, cell ?? '–'))))));
}

export function duration(seconds) {
  if (seconds == null) return '–';
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function size(bytes) {
  if (bytes == null) return '–';
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let i = 0;
  for (; bytes >= 1000 && i < 4; i++) bytes /= 1000;
  return `${bytes < 10 && i ? bytes.toFixed(1) : Math.round(bytes)} ${units[i]}`;
}

export function when(seconds) {
  if (seconds == null) return '–';
  const then = new Date(seconds * 1000);
  const today = then.toDateString() === new Date().toDateString();
  const time = then.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });
  return today ? time : `${then.toLocaleDateString([], { day: 'numeric', month: 'short' })} ${time}`;
}

export const money = (cost) => (cost == null ? null : cost < 0.01 ? '< 0.01' : cost.toFixed(2));
export const count = (number) => (number == null ? '–' : number.toLocaleString());
