// Datasets, models, and what computes: kernels and runs with their memory.
import { button, count, h, paint, size, table, when } from './dom.js';

export class Datasets {
  constructor(panel) {
    this.panel = panel;
    this.node = h('div');
    this.versions = new Map();
  }

  async show() {
    const found = await this.panel.server.ask('datasets');
    await Promise.all([...this.versions.keys()].map((name) => this.look(name)));
    this.found = found;
    this.paint();
  }

  changed() {} // a run that writes says so in the list of its steps

  paint() {
    paint(this.node, this.found.length ? this.found.map((d) => this.dataset(d))
      : h('p', {}, 'The lake is empty; a run fills it.'));
  }

  dataset(d) {
    const versions = this.versions.get(d.name);
    return h('details', {
      'data-key': `dataset ${d.name}`,
      ontoggle: (e) => e.target.open && !versions && this.panel.guard(async () => {
        await this.look(d.name);
        this.paint();
      }),
    },
    h('summary', { 'data-key': `summary ${d.name}` }, h('b', {}, d.name), ' ',
      h('span', { class: 'scalai-soft' }, d.error ?? `${count(d.rows)} rows · ${size(d.bytes)} · ${when(d.time)}`)),
    versions && table(['version', 'written', 'rows>', 'who', 'message'], versions.map((v) => [
      [v.id.slice(0, 6), v.tags.length ? ` (${v.tags.join(', ')})` : ''].join(''),
      when(v.time), count(v.rows), v.author, v.message,
    ])));
  }

  async look(name) {
    this.versions.set(name, await this.panel.server.ask(`datasets/${encodeURIComponent(name)}`));
  }
}

export class Models {
  constructor(panel) {
    this.panel = panel;
    this.node = h('div');
  }

  changed() {}

  async show() {
    const found = await this.panel.server.ask('models');
    paint(this.node, found.length ? found.map((m) => this.model(m)) : h('p', {}, 'No models yet; a run registers one.'));
  }

  model(m) {
    const verdict = m.verdict;
    return [
      h('h2', {}, m.name),
      verdict && h('p', {}, `${verdict.action} version ${verdict.version}: ${verdict.reason || 'no reason given'} `,
        h('span', { class: 'scalai-soft' }, `${verdict.by}, ${String(verdict.time).slice(0, 16).replace('T', ' ')}`)),
      table(['version>', 'alias', 'registered', 'metrics'], m.versions.map((v) => [
        v.version, v.aliases.join(', '), when(v.time),
        Object.entries(v.metrics).slice(0, 4).map(([k, x]) => `${k} ${x.toPrecision(3)}`).join(', '),
      ])),
    ];
  }
}

export class Kernels {
  constructor(panel) {
    this.panel = panel;
    this.clusters = h('div');
    this.node = h('div', {}, h('div'), this.clusters);
  }

  changed() {}

  // A scheduler may take a second to answer; the kernels do not wait for it.
  async show() {
    await Promise.all([this.look(), this.ask()]);
    clearTimeout(this.again);
    this.again = setTimeout(() => {
      if (this.panel.awake() && this.panel.tab === 'Cluster') this.panel.guard(() => this.show());
    }, 5000);
  }

  async look() {
    const { kernels, runs, machine, cluster } = await this.panel.server.ask('kernels');
    paint(this.node.firstChild,
      h('p', {}, `${size(machine.available)} of ${size(machine.total)} memory are free. Cluster: ${cluster}.`),
      h('h3', {}, 'Kernels'),
      kernels.length ? table(['notebook', 'kernel', 'memory>'], kernels.map((k) => [
        k.path, `${k.kernel.name}, ${k.kernel.execution_state ?? 'starting'}`, size(k.bytes),
      ])) : h('p', {}, 'None is running.'),
      h('h3', {}, 'Runs'),
      runs.length ? table(['run', 'processes>', 'memory>', ''], runs.map((r) => [
        r.run, r.processes, size(r.bytes), button('Stop', () => this.panel.stop(r.run), { 'data-key': `stop ${r.run}` }),
      ])) : h('p', {}, 'None is going on.'));
  }

  async ask() {
    const found = await this.panel.server.ask('clusters');
    paint(this.clusters, found.map((c) => [
      h('h3', {}, `Workers of ${c.users.join(', ')}`),
      h('p', { class: 'scalai-soft' }, c.address),
      c.silent ? h('p', { class: 'scalai-error' }, c.silent)
        : table(['worker', 'memory>', 'CPU>', 'tasks>'], c.workers.map((w) => [
          w.status === 'running' ? w.name : `${w.name}, ${w.status}`,
          w.limit ? `${size(w.memory)} of ${size(w.limit)}` : size(w.memory),
          `${Math.round(w.cpu)} %`, count(w.tasks),
        ])),
      c.more > 0 && h('p', {}, `and ${count(c.more)} more`),
    ]));
  }
}
