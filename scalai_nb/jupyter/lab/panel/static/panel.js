// The sidebar: five tabs, a line that says what went wrong, and one stream of what has changed.
import { h, paint } from './dom.js';
import { Datasets, Kernels, Models } from './holdings.js';
import { Pipelines } from './pipelines.js';
import { Runs } from './runs.js';

const TABS = { Pipelines, Runs, Datasets, Models, Cluster: Kernels };
const CALM = 150; // milliseconds in which changes are collected

export class Panel {
  constructor(server, lab) {
    this.server = server;
    this.lab = lab; // open(path, cell, kernel), visible()
    this.tab = 'Pipelines';
    this.views = Object.fromEntries(Object.entries(TABS).map(([name, View]) => [name, new View(this)]));
    this.message = h('p', { class: 'scalai-message', role: 'status' });
    this.choice = h('div', { class: 'scalai-environment' });
    this.body = h('div', { class: 'scalai-body', role: 'tabpanel', id: 'scalai-body', tabindex: '-1' });
    this.tabs = h('div', { role: 'tablist', 'aria-label': 'Project', class: 'scalai-tabs', onkeydown: (e) => this.key(e) });
    this.node = h('div', { class: 'scalai-panel' }, this.choice, this.tabs, this.message, this.body);
    server.listeners.add(this);
  }

  awake() {
    return this.lab.visible() && !document.hidden;
  }

  // Show everything anew, as when the sidebar opens.
  async wake() {
    this.server.attend();
    await this.guard(async () => {
      this.project = await this.server.ask('project');
      this.server.env ||= this.project.env;
      paint(this.choice, this.project.envs.length > 1 && h('label', {}, 'Environment ', h('select', {
        'data-key': 'env',
        onchange: (e) => {
          this.server.env = e.target.value;
          this.server.stream?.abort();
          this.server.stream = null;
          this.wake();
        },
      }, this.project.envs.map((n) => h('option', { value: n, selected: n === this.server.env }, n)))));
      await this.go(this.tab);
    });
  }

  // A tab, and what is to be shown in it.
  async go(tab, what) {
    this.tab = tab;
    const view = this.views[tab];
    paint(this.tabs, Object.keys(TABS).map((name) => h('button', {
      type: 'button', role: 'tab', id: `scalai-tab-${name}`, 'aria-controls': 'scalai-body', 'data-key': name,
      'aria-selected': String(name === tab), tabindex: name === tab ? '0' : '-1',
      onclick: () => this.guard(() => {
        this.say('');
        return this.go(name);
      }),
    }, name)));
    this.body.setAttribute('aria-labelledby', `scalai-tab-${tab}`);
    if (this.body.firstChild !== view.node) this.body.replaceChildren(view.node);
    await view.show(what ?? (tab === 'Runs' ? view.id : undefined));
  }

  key(e) {
    const names = Object.keys(TABS), at = names.indexOf(this.tab);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
    if (!step) return;
    e.preventDefault();
    const next = names[(at + step + names.length) % names.length];
    this.guard(() => this.go(next));
    this.focus(); // at once: what it shows may take a while
  }

  focus() {
    this.tabs.querySelector('[aria-selected=true]')?.focus();
  }

  // Runs have changed (null: nobody knows which). What comes within a moment, or while
  // something is being fetched, is shown at once.
  changed(ids) {
    this.news = ids && this.news !== null ? [...(this.news ?? []), ...ids] : null;
    this.soon ??= setTimeout(async () => {
      const news = this.news;
      this.news = undefined;
      if (this.project) await this.guard(() => this.views[this.tab].changed(news));
      this.soon = undefined;
      if (this.news !== undefined) this.changed([]);
    }, CALM);
  }

  stop(run) {
    return this.guard(async () => {
      this.say(`Stopping ${run} …`);
      const done = await this.server.ask(`runs/${run}/cancel`, {});
      this.say(`${run} is ${done.status}.`);
      await this.views[this.tab].show(this.views[this.tab].id);
    });
  }

  open(path, cell, kernel) {
    return this.lab.open(path, cell, kernel);
  }

  say(words, wrong) {
    this.message.textContent = words;
    this.message.classList.toggle('scalai-error', Boolean(wrong));
  }

  // Do something; what goes wrong is said.
  async guard(work) {
    try {
      return await work();
    } catch (error) {
      this.say(error.message, true);
    }
  }
}
