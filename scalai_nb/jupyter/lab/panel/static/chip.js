// On the toolbar of a notebook: how its step stands and why, or the way to make it one.
import { button, h, sign, tone } from './dom.js';

export class Chip {
  constructor(server, path, lab) {
    this.server = server;
    this.path = path; // a function: a notebook may be renamed
    this.lab = lab; // visible(), show(tab, what), ask(title, text), say(title, text), save(), revert()
    this.node = h('div', { class: 'scalai-chip' });
    server.listeners.add(this);
  }

  awake() {
    return this.lab.visible() && !document.hidden;
  }

  changed() {
    clearTimeout(this.soon);
    this.soon = setTimeout(() => this.refresh(), 500);
  }

  async refresh() {
    try {
      this.show(await this.server.ask('notebook', undefined, { path: this.path() }));
    } catch (error) {
      this.node.replaceChildren(); // the server has gone
    }
  }

  show(step) {
    if (step.outside) return this.node.replaceChildren();
    if (!step.pipeline) {
      return this.node.replaceChildren(button('Make this a step', () => this.adopt()));
    }
    const why = step.reasons[0], more = step.reasons.length - 1;
    const label = `${sign(step.status)} ${step.status}${why ? `: ${why}` : ''}`;
    this.node.replaceChildren(h('button', {
      type: 'button', class: `scalai-button scalai-state scalai-${tone(step.status)}`,
      title: [`${step.pipeline}, ${step.status}`, ...step.reasons].join('\n'),
      onclick: () => (step.listed === false ? this.lab.show('Runs') : this.lab.show('Pipelines', step.pipeline)),
    }, label.length > 60 ? `${label.slice(0, 59)}…` : label, more > 0 ? ` +${more}` : ''));
  }

  async adopt() {
    try {
      await this.lab.save();
      const proposed = await this.server.ask('adopt', { path: this.path(), dry: true });
      if (!await this.lab.ask('Make this a step?', proposed.said)) return;
      const { said } = await this.server.ask('adopt', { path: this.path() });
      await this.lab.revert();
      await this.lab.say('Made a step', said);
    } catch (error) {
      await this.lab.say('Not made a step', error.message);
    }
    await this.refresh();
  }

  close() {
    this.server.listeners.delete(this);
    this.server.attend();
  }
}
