// A pipeline: its graph, how each step stands and why, and what the chosen step read, wrote and took.

const versioned = (found) => found.map(([name, version]) => (version ? `${name}@${version}` : name)).join(', ');

function about(step) {
  const found = [
    ['Why', step.reasons.join('; ')], ['Error', step.error], ['Read', versioned(step.inputs)],
    ['Wrote', versioned(step.written)], ['Took', step.seconds != null && duration(step.seconds)],
    ['Cells', step.cells], ['Rows written', step.rows > 0 && count(step.rows)],
    ['Memory', step.memory && size(step.memory)],
    ['Measured', Object.entries(step.metrics).map(([k, v]) => `${k} ${figure(v)}`).join(', ')],
    ['Parameters', step.parameters],
  ];
  return [h('h3', {}, step.name, ' ', state(step.status)), h('p', { class: 'scalai-soft' }, step.title),
    pairs(found.filter(([, value]) => value))];
}

function render({ model, el }) {
  const head = h('div'), picture = h('div', { class: 'scalai-picture' });
  const steps = h('div', { class: 'scalai-list-of' }), aside = h('div', { class: 'scalai-aside', 'aria-live': 'polite' });
  const choose = (name) => {
    model.set('chosen', name);
    model.save_changes();
    draw();
  };

  function draw() {
    const { steps: all, edges, pipeline, last, problem } = model.get('board');
    const going = last?.status === 'running', chosen = model.get('chosen'), busy = model.get('busy');
    paint(head,
      h('h3', {}, pipeline, ' ', last && state(last.status)),
      h('p', { class: 'scalai-soft' }, last
        ? [last.id, when(last.started), duration(last.seconds), `${last.done}/${last.steps} steps`].join(' · ')
        : 'It has never run.'),
      problem && h('p', { class: 'scalai-bad' }, problem),
      h('div', { class: 'scalai-buttons' },
        button('Run', () => model.send({ do: 'run' }), { disabled: going || busy, class: 'scalai-button scalai-first' }),
        button('Stop', () => model.send({ do: 'stop' }), { disabled: !going || busy }),
        button('Look again', () => model.send({ do: 'look' }), { disabled: busy }),
        busy && h('span', { role: 'status' }, 'asked …')));
    paint(picture, all.length > 0 && graph(all, edges));
    picture.querySelectorAll('.scalai-node').forEach((node) =>
      node.addEventListener('click', () => choose(node.dataset.step)));
    paint(steps, h('ul', {}, all.map((s) => h('li', { class: s.name === chosen && 'scalai-chosen' },
      h('button', {
        type: 'button', class: 'scalai-link', 'data-key': `step ${s.name}`,
        'aria-pressed': String(s.name === chosen), onclick: () => choose(s.name),
      }, s.name), ' ', state(s.status), h('span', { class: 'scalai-soft' }, ` ${s.reasons[0] ?? ''}`)))));
    const found = all.find((s) => s.name === chosen);
    paint(aside, found ? about(found) : h('p', { class: 'scalai-soft' }, 'Choose a step.'));
  }

  return frame({ model, el }, 'A pipeline', ['board', 'busy', 'chosen'],
    [head, picture, h('div', { class: 'scalai-beside-it' }, steps, aside)], draw);
}

export default { render };
