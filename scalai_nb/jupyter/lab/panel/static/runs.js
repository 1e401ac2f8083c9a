// Runs: the list, one in full and live, two beside each other.
import { button, count, duration, h, money, paint, size, state, table, when } from './dom.js';

const PAGE = 50;

export class Runs {
  constructor(panel) {
    this.panel = panel;
    this.node = h('div');
    this.chosen = new Set(); // to be compared
    this.printed = new Map(); // "run step" -> its cells, as far as they were looked at
    this.most = PAGE;
  }

  async show(id) {
    this.id = id;
    await this.refresh();
  }

  async refresh() {
    const id = this.id;
    if (!id) {
      const rows = await this.panel.server.ask('runs');
      return id === this.id && this.paintList(rows);
    }
    const run = await this.panel.server.ask(`runs/${id}`);
    if (id !== this.id) return;
    this.run = run;
    const open = [...this.node.querySelectorAll('details[open]')].map((d) => d.dataset.step);
    await Promise.all(run.steps.filter((s) => open.includes(s.name) && this.isOld(s)).map((s) => this.look(s.name)));
    if (id === this.id) this.paintRun();
  }

  async changed(ids) {
    if (!this.id || !ids || ids.includes(this.id)) await this.refresh();
  }

  paintList(rows) {
    this.rows = rows;
    const two = [...this.chosen];
    paint(this.node,
      h('div', { class: 'scalai-buttons' },
        button('Compare two', () => this.panel.guard(() => this.compare(...two)), { disabled: two.length !== 2 })),
      rows.length ? h('ul', { class: 'scalai-list' }, rows.slice(0, this.most).map((r) => this.row(r)))
        : h('p', {}, 'No runs yet; start one under Pipelines.'),
      rows.length > this.most && button(`Show ${Math.min(PAGE, rows.length - this.most)} more of ${rows.length}`, () => {
        this.most += PAGE;
        this.paintList(rows);
      }));
  }

  row(r) {
    const spent = money(r.cost);
    return h('li', {},
      h('input', {
        type: 'checkbox', 'aria-label': `Compare ${r.id}`, checked: this.chosen.has(r.id), 'data-key': `check ${r.id}`,
        onchange: (e) => {
          e.target.checked ? this.chosen.add(r.id) : this.chosen.delete(r.id);
          this.paintList(this.rows);
        },
      }),
      h('button', {
        type: 'button', class: 'scalai-row', 'data-key': `run ${r.id}`, title: r.id,
        onclick: () => this.panel.guard(() => this.show(r.id)),
      },
      h('span', {}, h('b', {}, r.pipeline ?? r.id), ' ', state(r.status)),
      h('span', { class: 'scalai-soft' }, [
        when(r.started), duration(r.seconds), r.steps != null && `${r.done}/${r.steps} steps`,
        spent && `cost ${spent}`,
      ].filter(Boolean).join(' · ')),
      r.failed && h('span', { class: 'scalai-soft' }, `${r.failed}: ${r.error ?? ''}`)));
  }

  paintRun() {
    const { run } = this, going = run.status === 'running', spent = money(run.cost);
    paint(this.node,
      h('div', { class: 'scalai-buttons' },
        button('‹ Runs', () => this.panel.guard(() => this.show()), { 'data-key': 'back' }),
        going ? button('Stop', () => this.panel.stop(run.id))
          : button('Run again', () => this.panel.guard(() => this.again(run.id))),
        !going && h('a', {
          class: 'scalai-button', target: '_blank', rel: 'noopener', 'data-key': 'report',
          href: this.panel.server.address(`runs/${run.id}/report`),
        }, 'Report')),
      h('h2', {}, run.pipeline, ' ', state(run.status)),
      h('p', { class: 'scalai-soft' }, [
        run.id, when(run.started), duration(run.seconds), run.env, spent && `cost ${spent}`,
      ].filter(Boolean).join(' · ')),
      run.damage && h('p', { class: 'scalai-error' }, run.damage),
      run.kept.map((k) => h('p', {},
        `The kernel of ${k.step} is kept until ${when(k.until)}, with ${size(k.bytes)}. `,
        button('End it', () => this.panel.stop(run.id), { class: 'scalai-link' }))),
      run.steps.map((step) => this.step(step)));
  }

  step(step) {
    const cells = this.printed.get(`${this.id} ${step.name}`)?.cells;
    const done = step.cells.filter((c) => c.status === 'completed').length;
    const going = step.status === 'running' && ` ${done}/${step.cells.length} cells`;
    return h('details', {
      'data-key': `step ${step.name}`, 'data-step': step.name,
      ontoggle: (e) => e.target.open && !cells && this.panel.guard(async () => {
        await this.look(step.name);
        this.paintRun();
      }),
    },
    h('summary', { 'data-key': `summary ${step.name}` },
      h('b', {}, step.name), ' ', state(step.status), going, step.seconds != null && ` ${duration(step.seconds)}`),
    step.error && h('p', { class: 'scalai-error' }, step.error),
    h('p', { class: 'scalai-soft' }, [
      step.rows > 0 && `${count(step.rows)} rows`, step.memory && size(step.memory),
      ...step.written.map(([name, version]) => `wrote ${name}@${String(version).slice(0, 6)}`),
      ...Object.entries(step.metrics).map(([name, value]) => `${name} ${value.toPrecision(3)}`),
    ].filter(Boolean).join(' · ')),
    ['failed', 'lost', 'damaged'].includes(step.status) && h('div', { class: 'scalai-buttons' },
      button('Open at the failing cell', () => this.panel.guard(() => this.openFailed(step)), {
        'data-key': `failing ${step.name}`, class: 'scalai-button scalai-first',
      })),
    h('ol', { class: 'scalai-cells' }, (cells ?? step.cells).map((c) => cell(c))));
  }

  // Whether a step may have printed more since it was looked at.
  isOld(step) {
    return step.status === 'running' || this.printed.get(`${this.id} ${step.name}`)?.status !== step.status;
  }

  async look(name) {
    const key = `${this.id} ${name}`, status = this.run.steps.find((s) => s.name === name)?.status;
    const found = await this.panel.server.ask(`runs/${this.id}/steps/${encodeURIComponent(name)}`);
    this.printed.set(key, { ...found, status });
    return found;
  }

  async openFailed(step) {
    const found = await this.look(step.name);
    if (!found.open) throw new Error(`The notebook of ${step.name} is no longer there.`);
    let kernel;
    if (found.kept) {
      const attached = await this.panel.server.ask(`runs/${this.id}/steps/${encodeURIComponent(step.name)}/attach`, {});
      kernel = attached.kernel;
      this.panel.say(`On the kernel of the run, kept until ${when(attached.until)}: its variables are there.`);
    }
    await this.panel.open(found.open, found.culprit, kernel);
  }

  async again(id) {
    this.panel.say('Starting …');
    const { run } = await this.panel.server.ask('runs', { again: id });
    this.panel.say('');
    await this.show(run);
  }

  async compare(a, b) {
    const [one, two] = await Promise.all([a, b].map((id) => this.panel.server.ask(`runs/${id}`)));
    if (one.started > two.started) return this.compare(b, a);
    const rows = differences(one, two);
    this.id = `${a} and ${b}`; // no live run repaints this
    paint(this.node,
      h('div', { class: 'scalai-buttons' }, button('‹ Runs', () => this.panel.guard(() => this.show()), { 'data-key': 'back' })),
      h('h2', {}, 'Two runs'),
      h('p', { class: 'scalai-soft' }, `${one.id} (${when(one.started)}), ${two.id} (${when(two.started)})`),
      rows.length ? table(['what', 'first', 'second'], rows) : h('p', {}, 'They do not differ.'));
  }
}

function cell(c) {
  return h('li', { class: `scalai-cell-${c.status}` },
    h('code', {}, c.title || `cell ${c.index + 1}`), ' ', state(c.status),
    c.seconds != null && ` ${duration(c.seconds)}`,
    c.text && h('pre', { tabindex: '0', role: 'region', 'aria-label': `Printed by cell ${c.index + 1}` }, c.text));
}

// What differs between two runs: statuses, times, versions read, parameters, metrics.
function differences(one, two) {
  const rows = [], names = new Set([...one.steps, ...two.steps].map((s) => s.name));
  const add = (what, a, b) => JSON.stringify(a) !== JSON.stringify(b) && rows.push([what, word(a), word(b)]);
  add('status', one.status, two.status);
  rows.push(['time', duration(one.seconds), duration(two.seconds)]);
  for (const name of names) {
    const [a, b] = [one, two].map((run) => run.steps.find((s) => s.name === name) ?? {});
    add(name, a.status, b.status);
    add(`${name}: error`, a.error, b.error);
    if (a.seconds != null && b.seconds != null) rows.push([`${name}: time`, duration(a.seconds), duration(b.seconds)]);
    for (const part of ['parameters', 'inputs', 'metrics']) {
      for (const key of new Set([...Object.keys(a[part] ?? {}), ...Object.keys(b[part] ?? {})])) {
        add(`${name}.${key}`, a[part]?.[key], b[part]?.[key]);
      }
    }
  }
  return rows;
}

const word = (value) => (value == null ? '–' : typeof value === 'string' ? value.slice(0, 120) : JSON.stringify(value));
