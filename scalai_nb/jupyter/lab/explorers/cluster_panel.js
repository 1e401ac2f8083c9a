// A cluster: its workers, what they hold and do; more or fewer of them by buttons.

function workers(found) {
  const used = (w) => h('span', {},
    h('meter', { min: 0, max: w.limit || 1, value: w.limit ? w.memory : 0, 'aria-label': `memory of ${w.name}` }),
    ` ${size(w.memory)}${w.limit ? ` of ${size(w.limit)}` : ''}`);
  return table(['worker', 'status', 'threads>', 'memory', 'processor>', 'tasks>'], found.map((w) =>
    [w.name, w.status, w.threads, used(w), `${Math.round(w.cpu)} %`, count(w.tasks)]));
}

function render({ model, el }) {
  const top = h('div'), body = h('div');

  function draw() {
    const { address, workers: all, tasks, scalable, dashboard, hint, more } = model.get('cluster');
    const busy = model.get('busy');
    const scale = (to) => model.send({ do: 'scale', workers: to });
    const act = (words, to, off, more) => button(words, () => scale(to), { disabled: busy || off, ...more });
    paint(top,
      h('h3', {}, address ? `Cluster of ${count(all.length + more)} workers` : 'No cluster'),
      address ? h('p', { class: 'scalai-soft' }, address, dashboard && [' · ', h('a', {
        href: dashboard, target: '_blank', rel: 'noopener', 'data-key': 'dashboard',
      }, 'its dashboard')]) : h('p', {}, hint),
      h('div', { class: 'scalai-buttons' },
        address && scalable && [
          act('− 1 worker', all.length + more - 1, all.length + more < 2), act('+ 1 worker', all.length + more + 1), act('End it', 0),
        ],
        !address && scalable && act('Start 2 workers', 2, false, { class: 'scalai-button scalai-first' }),
        address && !scalable && h('span', { class: 'scalai-soft' }, hint),
        busy && h('span', { role: 'status' }, 'asked …')));
    paint(body, address && [
      pairs([['Tasks waiting or running', count(tasks.waiting)], ['Results held', count(tasks.held)], ['Failed', count(tasks.failed)]]),
      workers(all), more > 0 && h('p', { class: 'scalai-soft' }, `and ${count(more)} more workers`),
    ]);
  }

  return frame({ model, el }, 'Workers of a cluster', ['cluster', 'busy'], [top, body], draw);
}

export default { render };
