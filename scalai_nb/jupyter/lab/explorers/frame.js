// The frame of an explorer: a named region, its parts, and a line that is read aloud when it changes.

const DARK = '(prefers-color-scheme: dark)';

const isDark = (el) => { // JupyterLab says whether it is; elsewhere the browser does
  const said = document.body.dataset.jpThemeLight;
  if (said && !el.closest('.scalai-page')) return said === 'false';
  return matchMedia(DARK).matches;
};

// Draw `parts` now and whenever one of `traits` changes; what to call when the view goes.
export function frame({ model, el }, label, traits, parts, draw) {
  const said = h('p', { class: 'scalai-trouble', role: 'status' });
  const root = h('section', {
    class: 'scalai-explorer', 'aria-label': label,
    onfocusin: (e) => e.target.setAttribute('data-lm-suppress-shortcuts', ''), // JupyterLab leaves us the keys
  }, parts, said);
  const shade = () => root.classList.toggle('scalai-dark', isDark(el));
  const drawn = () => {
    said.textContent = model.get('trouble');
    draw();
  };
  const watcher = new MutationObserver(shade);
  watcher.observe(document.body, { attributes: true, attributeFilter: ['data-jp-theme-light'] });
  matchMedia(DARK).addEventListener('change', shade);
  const heard = [...traits, 'trouble'].map((name) => `change:${name}`);
  heard.forEach((event) => model.on(event, drawn));
  el.append(root);
  shade();
  drawn();
  return () => {
    watcher.disconnect();
    matchMedia(DARK).removeEventListener('change', shade);
    heard.forEach((event) => model.off(event, drawn));
  };
}

// Names and values, one pair a line.
export const pairs = (found) =>
  h('dl', {}, found.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))));

// A number as people read it: three digits behind the point, or whole.
export const figure = (x) => {
  if (x == null || Number.isNaN(x)) return '–';
  return Number.isInteger(x) ? x.toLocaleString('en') : x.toPrecision(3);
};
