// A threshold on a slider: what is flagged from there on, how well, and what it costs.

const ratio = (a, b) => (b ? a / b : NaN);
const share = (x) => (Number.isNaN(x) ? '–' : `${(100 * x).toFixed(1)} %`);

// What happens if scores from a threshold on are flagged.
function measures({ threshold, tp, fp }, { positives, rows }, costs) {
  const fn = positives - tp, tn = rows - positives - fp;
  const precision = ratio(tp, tp + fp), recall = ratio(tp, positives);
  return {
    threshold, tp, fp, fn, tn, precision, recall, flagged: ratio(tp + fp, rows),
    f1: ratio(2 * tp, 2 * tp + fp + fn), cost: costs && costs[0] * fp + costs[1] * fn,
  };
}

const LINES = [['precision', 'line0'], ['recall', 'line1'], ['f1', 'line2']];
const COST = ['cost', 'line3'];

function curves(points, chosen) {
  const wide = 480, high = 130, x = (i) => (i / Math.max(points.length - 1, 1)) * wide;
  const dearest = Math.max(...points.map((p) => p.cost ?? 0));
  const lines = dearest ? [...LINES, COST] : LINES;
  const height = (p, name) => (name === 'cost' ? p.cost / dearest : p[name]);
  const spot = (v, i) => (Number.isNaN(v) ? '' : `${x(i).toFixed(1)} ${(high - 2 - v * (high - 4)).toFixed(1)}`);
  const line = (name) => `M${points.map((p, i) => spot(height(p, name), i)).filter(Boolean).join('L')}`;
  const words = { f1: 'F1', cost: `cost, at most ${figure(dearest)}` };
  const key = ([name, look]) => h('li', {}, h('span', { class: `scalai-key ${look}`, 'aria-hidden': 'true' }), words[name] ?? name);
  return h('figure', {},
    h('svg', { viewBox: `0 0 ${wide} ${high}`, role: 'img', class: 'scalai-lines', 'aria-label': `Precision, recall, F1${dearest ? ' and cost' : ''} at each threshold` },
      lines.map(([name, look]) => h('path', { class: look, d: line(name) })),
      h('path', { class: 'scalai-here', d: `M${x(chosen)} 0V${high}` })),
    h('ul', { class: 'scalai-keys' }, lines.map(key)));
}

function confusion(m) {
  const cell = (n, tone, words) => h('td', { class: `scalai-right scalai-${tone}` }, figure(n), h('small', {}, ` ${words}`));
  return h('table', {},
    h('caption', {}, 'Rows by label and by flag'),
    h('thead', {}, h('tr', {}, h('td', {}), h('th', { scope: 'col' }, 'flagged'), h('th', { scope: 'col' }, 'let through'))),
    h('tbody', {},
      h('tr', {}, h('th', { scope: 'row' }, 'positive'), cell(m.tp, 'good', 'caught'), cell(m.fn, 'bad', 'missed')),
      h('tr', {}, h('th', { scope: 'row' }, 'negative'), cell(m.fp, 'bad', 'false alarms'), cell(m.tn, 'good', 'right'))));
}

const at = (threshold) => `${+threshold.toPrecision(3)}`;
const SAID = [ // of two thresholds side by side
  ['Threshold', (m) => at(m.threshold)],
  ['Recall: cases that are caught', (m) => share(m.recall)],
  ['Precision: alerts that are right', (m) => share(m.precision)],
  ['Share of alerts', (m) => share(m.flagged)],
  ['False alerts', (m) => figure(m.fp)],
  ['Missed cases', (m) => figure(m.fn)],
];

function compared(here, served) {
  const said = here.cost == null ? SAID : [...SAID, ['Cost', (m) => figure(m.cost)]];
  return h('table', { class: 'scalai-compared' },
    h('caption', {}, 'What happens from there on'),
    h('thead', {}, h('tr', {}, h('td', {}), ['here', 'in service'].map((words) => h('th', { scope: 'col', class: 'scalai-right' }, words)))),
    h('tbody', {}, said.map(([words, of]) => h('tr', {},
      h('th', { scope: 'row' }, words),
      [here, served].map((m) => h('td', { class: 'scalai-right' }, of(m)))))));
}

function render({ model, el }) {
  const curve = model.get('curve');
  let points, priced = null;
  function price() { // the costs may change; the counts do not
    const costs = model.get('costs'), said = JSON.stringify(costs);
    if (said === priced) return;
    priced = said;
    points = curve.threshold.map((threshold, i) =>
      measures({ threshold, tp: curve.tp[i], fp: curve.fp[i] }, curve, costs));
  }
  const put = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const set = (threshold) => put('threshold', threshold);
  const place = (threshold) => { // of the least threshold of the slider that flags no more
    const found = points.findIndex((p) => p.threshold >= threshold);
    return found < 0 ? points.length - 1 : found;
  };
  const slider = h('input', {
    type: 'range', min: 0, max: curve.threshold.length - 1, step: 1, oninput: (e) => set(points[+e.target.value].threshold),
  });
  const take = () => {
    if (typed.value === '') return;
    const wanted = Math.min(1, Math.max(0, +typed.value));
    set(model.get('alone') ? points[place(wanted)].threshold : wanted);
  };
  const entered = (act, more) => h('input', {
    type: 'number', min: 0, step: 'any', onchange: act, ...more,
    onkeydown: (e) => e.key === 'Enter' && act(), // of which JupyterLab lets no change come
  });
  const typed = entered(take, { max: 1 });
  const charge = () => {
    const said = prices.map((p) => p.value);
    const good = said.every((x) => x !== '' && +x >= 0 && Number.isFinite(+x));
    if (good || said.every((x) => x === '')) put('costs', good ? said.map(Number) : null);
  };
  const prices = [0, 1].map(() => entered(charge));
  const best = (value) => set(points.reduce((a, b) => (value(b) > value(a) || Number.isNaN(value(a)) ? b : a)).threshold);
  const least = button('Least cost', () => best((p) => -p.cost));
  const shown = h('div', { class: 'scalai-beside-it' });
  const served = () => model.get('served');

  function now() { // the kernel knows any threshold; the page those of its slider
    const said = model.get('point'), threshold = model.get('threshold');
    return said.threshold === threshold ? measures(said, curve, model.get('costs')) : points[place(threshold)];
  }

  function draw() {
    price();
    const threshold = model.get('threshold'), chosen = place(threshold), m = now(), costs = model.get('costs');
    slider.value = chosen;
    const cost = m.cost == null ? '' : `, cost ${figure(m.cost)}`;
    slider.setAttribute('aria-valuetext', `${at(threshold)}: precision ${share(m.precision)}, recall ${share(m.recall)}${cost}`);
    if (document.activeElement !== typed) typed.value = +threshold.toPrecision(6);
    prices.forEach((p, i) => {
      if (document.activeElement !== p) p.value = costs ? costs[i] : '';
    });
    least.disabled = !costs;
    const both = served() != null && { ...points[place(served())], threshold: served() };
    paint(shown,
      h('div', {}, curves(points, chosen), confusion(m)),
      both ? compared(m, both) : pairs([
        ['Precision', share(m.precision)], ['Recall', share(m.recall)], ['F1', share(m.f1)],
        ['Share flagged', share(m.flagged)], ...(m.cost == null ? [] : [['Cost', figure(m.cost)]]),
      ]));
  }

  return frame({ model, el }, 'Threshold of a score', ['threshold', 'point', 'costs'], [
    h('div', { class: 'scalai-fields' },
      h('label', { class: 'scalai-wide' }, 'Flag scores from ', slider), h('label', {}, 'Threshold ', typed),
      button('Best F1', () => best((p) => p.f1)), least,
      served() != null && button('As in service', () => set(served()))),
    h('div', { class: 'scalai-fields' },
      ['Cost of a false alarm ', 'of a miss '].map((words, i) => h('label', {}, words, prices[i]))),
    shown,
  ], draw);
}

export default { render };
