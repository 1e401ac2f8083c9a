// A threshold on a slider: what is flagged from there on, how well, and what it costs.

const ratio = (a, b) => (b ? a / b : NaN);
const share = (x) => (Number.isNaN(x) ? '–' : `${(100 * x).toFixed(1)} %`);

// What happens if scores from a threshold on are flagged.
function measures({ threshold, tp, fp }, { positives, rows, costs }) {
  const fn = positives - tp, tn = rows - positives - fp;
  const precision = ratio(tp, tp + fp), recall = ratio(tp, positives);
  return {
    threshold, tp, fp, fn, tn, precision, recall, flagged: ratio(tp + fp, rows),
    f1: ratio(2 * tp, 2 * tp + fp + fn), cost: costs && costs[0] * fp + costs[1] * fn,
  };
}

const LINES = [['precision', 'line0'], ['recall', 'line1'], ['f1', 'line2']];

function curves(points, chosen) {
  const wide = 480, high = 130, x = (i) => (i / Math.max(points.length - 1, 1)) * wide;
  const y = (v) => high - 2 - (Number.isNaN(v) ? 0 : v) * (high - 4);
  const line = (name) => points.map((p, i) => `${i ? 'L' : 'M'}${x(i).toFixed(1)} ${y(p[name]).toFixed(1)}`).join('');
  const key = (name, words) => h('li', {}, h('span', { class: `scalai-key ${name}`, 'aria-hidden': 'true' }), words);
  return h('figure', {},
    h('svg', { viewBox: `0 0 ${wide} ${high}`, role: 'img', class: 'scalai-lines', 'aria-label': 'Precision, recall and F1 at each threshold' },
      LINES.map(([name, look]) => h('path', { class: look, d: line(name) })),
      h('path', { class: 'scalai-here', d: `M${x(chosen)} 0V${high}` })),
    h('ul', { class: 'scalai-keys' }, LINES.map(([name, look]) => key(look, name === 'f1' ? 'F1' : name))));
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

function render({ model, el }) {
  const curve = model.get('curve');
  const points = curve.threshold.map((threshold, i) =>
    measures({ threshold, tp: curve.tp[i], fp: curve.fp[i] }, curve));
  const set = (threshold) => {
    model.set('threshold', threshold);
    model.save_changes();
  };
  const nearest = () => { // the least threshold of the slider that flags no more
    const at = points.findIndex((p) => p.threshold >= model.get('threshold'));
    return at < 0 ? points.length - 1 : at;
  };
  const slider = h('input', {
    type: 'range', min: 0, max: points.length - 1, step: 1, oninput: (e) => set(points[+e.target.value].threshold),
  });
  const take = () => typed.value !== '' && set(Math.min(1, Math.max(0, +typed.value)));
  const typed = h('input', {
    type: 'number', min: 0, max: 1, step: 'any', onchange: take,
    onkeydown: (e) => e.key === 'Enter' && take(), // of which JupyterLab lets no change come
  });
  const best = (value) => points.reduce((a, b) => (value(b) > value(a) || Number.isNaN(value(a)) ? b : a)).threshold;
  const shown = h('div', { class: 'scalai-beside-it' });

  function now() { // the kernel knows any threshold; the page those of its slider
    const said = model.get('point'), threshold = model.get('threshold');
    return said.threshold === threshold ? measures(said, curve) : points[nearest()];
  }

  function draw() {
    const at = nearest(), m = now(), threshold = model.get('threshold');
    slider.value = at;
    slider.setAttribute('aria-valuetext', `${threshold.toPrecision(3)}: precision ${share(m.precision)}, recall ${share(m.recall)}`);
    if (document.activeElement !== typed) typed.value = +threshold.toPrecision(6);
    paint(shown,
      h('div', {}, curves(points, at), confusion(m)),
      pairs([
        ['Precision', share(m.precision)], ['Recall', share(m.recall)], ['F1', share(m.f1)],
        ['Share flagged', share(m.flagged)], ...(m.cost == null ? [] : [['Cost', figure(m.cost)]]),
      ]));
  }

  return frame({ model, el }, 'Threshold of a score', ['threshold', 'point'], [
    h('div', { class: 'scalai-fields' },
      h('label', { class: 'scalai-wide' }, 'Flag scores from ', slider), h('label', {}, 'Threshold ', typed),
      button('Best F1', () => set(best((p) => p.f1))),
      curve.costs && button('Least cost', () => set(best((p) => -p.cost)))),
    shown,
  ], draw);
}

export default { render };
