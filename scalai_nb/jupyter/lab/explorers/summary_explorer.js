// A summary: its columns as a list that is searched and sorted by the kernel, and one of them at large.

const HEADS = [['', 'column'], ['kind', 'kind'], ['missing', 'missing'], ['distinct', 'distinct']];
const DRIFTED = [['psi', 'moved (PSI)']];

// Bars of a column, with the reference as a line where there is one.
function histogram(found) {
  const wide = 480, high = 120, step = wide / found.bars.length;
  const most = Math.max(...found.bars, ...(found.before ?? []), 1e-9);
  const tall = (share) => (share / most) * (high - 4);
  const line = found.before?.map((share, i) =>
    `${i ? 'L' : 'M'}${i * step} ${high - tall(share)}H${(i + 1) * step}`);
  return h('figure', {},
    h('svg', { viewBox: `0 0 ${wide} ${high}`, role: 'img', class: 'scalai-bars', 'aria-label': found.about },
      found.bars.map((share, i) => h('rect', {
        x: i * step, y: high - tall(share), width: Math.max(step - 1, 1), height: tall(share),
      }, h('title', {}, found.titles[i]))),
      line && h('path', { d: line.join('') })),
    h('figcaption', {}, h('span', {}, found.ends[0]), found.before && h('span', {}, '▮ now  — reference'),
      h('span', {}, found.ends[1])));
}

function detail(found) {
  if (!found.name) return [h('p', { class: 'scalai-soft' }, 'Choose a column.')];
  return [
    h('h3', {}, found.name, ' ', h('small', {}, found.units)),
    h('p', { class: 'scalai-soft' }, found.title),
    found.bars.length > 0 && histogram(found),
    pairs(found.figures),
    found.quantiles.length > 0 && table(['share below', 'value>'], found.quantiles),
    found.frequent.length > 0 && table(['most frequent', 'rows>', 'share>'], found.frequent),
    found.drift.length > 0 && [h('h4', {}, 'Against the reference'), pairs(found.drift)],
  ];
}

function render({ model, el }) {
  const asked = () => model.get('query');
  const ask = (more) => {
    model.set('query', { ...asked(), page: 0, ...more });
    model.save_changes();
  };
  const choose = (at) => {
    model.set('at', at);
    model.save_changes();
  };
  let typing;
  const text = h('input', {
    type: 'search', value: asked().text, maxlength: 200,
    oninput: () => {
      clearTimeout(typing);
      typing = setTimeout(() => ask({ text: text.value }), 150);
    },
  });
  const kinds = h('select', { onchange: (e) => ask({ kind: e.target.value }) },
    ['', ...model.get('kinds')].map((k) => h('option', { value: k, selected: k === asked().kind }, k || 'every kind')));
  const list = h('div', { class: 'scalai-list-of', onkeydown: step });
  const aside = h('div', { class: 'scalai-aside', 'aria-live': 'polite' });
  const heads = model.get('drifted') ? [...HEADS, ...DRIFTED] : HEADS;

  const head = ([key, words]) => {
    const { sort, down } = asked(), sorted = sort === key && key;
    return h('th', { scope: 'col', 'aria-sort': sorted && (down ? 'descending' : 'ascending') },
      h('button', {
        type: 'button', class: 'scalai-link', 'data-key': `sort ${key}`,
        onclick: () => ask({ sort: key, down: sort === key && key ? !down : key !== 'kind' }),
      }, words, sorted && h('span', { 'aria-hidden': 'true' }, down ? ' ▾' : ' ▴')));
  };
  const row = ([at, name, ...cells]) => h('tr', { class: at === model.get('at') && 'scalai-chosen' },
    h('th', { scope: 'row' }, h('button', {
      type: 'button', class: 'scalai-link', 'data-key': `row ${at}`, 'data-row': at,
      'aria-pressed': String(at === model.get('at')), onclick: () => choose(at),
    }, name || '(no name)')), cells.map((c, i) => h('td', { class: i && 'scalai-right' }, c)));

  function step(e) { // the arrows go from column to column
    const next = { ArrowDown: 1, ArrowUp: -1 }[e.key];
    if (!next || e.target.dataset.row == null) return;
    const rows = [...list.querySelectorAll('[data-row]')];
    rows[rows.indexOf(e.target) + next]?.focus();
    e.preventDefault();
  }

  function draw() {
    const { rows, found, page, pages, first } = model.get('listed');
    const turn = (to, words, label) => button(words, () => ask({ page: to }), {
      'aria-label': label, 'data-key': label, disabled: to < 0 || to >= pages,
    });
    paint(list,
      h('table', {}, h('thead', {}, h('tr', {}, heads.map(head))), h('tbody', {}, rows.map(row))),
      h('div', { class: 'scalai-buttons' },
        turn(page - 1, '‹', 'columns before'), turn(page + 1, '›', 'columns after'),
        h('span', { role: 'status' }, found
          ? `${count(first + 1)} to ${count(first + rows.length)} of ${count(found)} columns`
          : 'no column is like that')));
    paint(aside, detail(model.get('column')));
  }

  return frame({ model, el }, 'Columns of a dataset', ['listed', 'column', 'at'], [
    h('div', { class: 'scalai-fields' }, h('label', {}, 'Find a column ', text), h('label', {}, 'Kind ', kinds)),
    h('div', { class: 'scalai-beside-it' }, list, aside),
  ], draw);
}

export default { render };
