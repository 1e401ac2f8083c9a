// Pipelines: the graph, each step with how it stands and why, and the form of the parameters.
import { button, duration, h, paint, state } from './dom.js';
import { graph } from './graph.js';

export class Pipelines {
  constructor(panel) {
    this.panel = panel;
    this.typed = {}; // "step.parameter" -> text that is not the notebook's
    this.refused = {}; // "step.parameter" -> sentence
    this.chooser = h('div');
    this.board = h('div');
    this.form = h('div');
    this.node = h('div', {}, this.chooser, this.board, this.form);
  }

  async show(name) {
    const known = this.panel.project.pipelines;
    const chosen = name ?? (known.includes(this.name) ? this.name : known[0]);
    if (chosen !== this.name) [this.typed, this.refused] = [{}, {}];
    this.name = chosen;
    paint(this.chooser, known.length > 1 && h('label', {}, 'Pipeline ', h('select', {
      'data-key': 'pipeline', onchange: (e) => this.panel.guard(() => this.show(e.target.value)),
    }, known.map((n) => h('option', { value: n, selected: n === chosen }, n)))));
    if (!chosen) {
      return paint(this.board, h('p', {}, 'No pipeline yet; put numbered notebooks into a folder of ',
        h('code', {}, 'pipelines'), ' of settings.ini.'));
    }
    await this.refresh();
    this.paintForm();
  }

  async refresh() {
    if (!this.name) return;
    const name = this.name;
    const plan = await this.panel.server.ask(`pipelines/${encodeURIComponent(name)}`);
    if (name !== this.name) return; // another was chosen meanwhile
    this.plan = plan;
    this.paintBoard();
  }

  // While a run goes on, its record says how its steps stand; a plan takes longer.
  async changed(ids) {
    const last = this.plan?.last;
    if (last?.status !== 'running' || !ids?.every((id) => id === last.id)) return this.refresh();
    const run = await this.panel.server.ask(`runs/${last.id}`);
    if (run.status !== 'running') return this.refresh();
    last.seconds = run.seconds;
    for (const step of this.plan.steps) {
      step.status = run.steps.find((s) => s.name === step.name)?.status ?? step.status;
    }
    this.paintBoard();
  }

  paintBoard() {
    const { plan } = this, going = plan.last?.status === 'running';
    const stale = plan.steps.filter((s) => s.reasons.length).length;
    paint(this.board,
      h('h2', {}, plan.pipeline),
      h('div', { class: 'scalai-buttons' },
        button('Run', () => this.run({}), { disabled: going, class: 'scalai-button scalai-first' }),
        button('Dry run', () => this.run({ dry: true })),
        button('Run all', () => this.run({ force: true }), {
          disabled: going, title: 'Execute every step, cached or not',
        }),
        button('Stop', () => this.panel.stop(plan.last.id), { disabled: !going })),
      plan.problem && h('p', { class: 'scalai-error', role: 'alert' }, plan.problem),
      h('p', { class: 'scalai-soft' }, going
        ? `Running for ${duration(plan.last.seconds ?? 0)}; `
        : stale ? `${stale} of ${plan.steps.length} steps would run. ` : 'Everything is cached. ',
      plan.last && button(going ? 'follow it' : 'last run', () => this.panel.go('Runs', plan.last.id), {
        class: 'scalai-link',
      })),
      h('div', { class: 'scalai-picture' }, graph(plan.steps, plan.edges)),
      plan.steps.map((step) => this.step(step, going)));
  }

  step(step, going) {
    return h('details', { 'data-key': `step ${step.name}` },
      h('summary', { 'data-key': `summary ${step.name}` }, h('b', {}, step.name), ' ', state(step.status)),
      step.title && h('p', {}, step.title),
      step.reasons.length > 0 && h('ul', {}, step.reasons.map((r) => h('li', {}, r))),
      h('p', { class: 'scalai-soft' }, [
        step.reads.length && `reads ${step.reads.join(', ')}`,
        step.writes.length && `writes ${step.writes.join(', ')}`,
        step.seconds != null && `took ${duration(step.seconds)}`,
      ].filter(Boolean).join(' · ')),
      h('div', { class: 'scalai-buttons' },
        step.open && button('Open notebook', () => this.panel.open(step.open), { 'data-key': `open ${step.name}` }),
        button('Run from here', () => this.run({ from: step.name }), {
          'data-key': `from ${step.name}`, disabled: going,
        })));
  }

  paintForm() {
    const { form } = this.plan, steps = [...new Set(form.map((f) => f.step))];
    paint(this.form, form.length > 0 && h('h3', {}, 'Parameters'),
      h('form', {
        onsubmit: (e) => {
          e.preventDefault();
          this.run({});
        },
      }, steps.map((step) => h('fieldset', {},
        h('legend', {}, step), form.filter((f) => f.step === step).map((f) => this.field(f)))),
      h('input', { type: 'submit', hidden: true, 'aria-hidden': 'true', tabindex: '-1' })));
  }

  field(f) {
    const key = `${f.step}.${f.name}`, wrong = this.refused[key], id = `scalai-${key}`;
    const value = this.typed[key] ?? f.value;
    const take = (e) => {
      if (e.target.value === f.value) delete this.typed[key];
      else this.typed[key] = e.target.value;
    };
    const about = {
      id, 'data-key': key, oninput: take, 'aria-invalid': wrong ? 'true' : 'false',
      'aria-describedby': `${id}-help`, required: f.required,
    };
    const input = f.choices.length
      ? h('select', about, f.choices.map((c) => h('option', { value: c, selected: c === value }, c)))
      : h('input', { ...about, type: 'text', spellcheck: 'false', autocomplete: 'off', value });
    return h('div', { class: 'scalai-field' },
      h('label', { for: id }, f.name, ' ', h('code', {}, f.type)), input,
      h('small', { id: `${id}-help` }, f.help, wrong && h('span', { class: 'scalai-error', role: 'alert' }, wrong)));
  }

  values() {
    const found = {};
    for (const [key, text] of Object.entries(this.typed)) {
      const at = key.indexOf('.');
      (found[key.slice(0, at)] ??= {})[key.slice(at + 1)] = text;
    }
    return found;
  }

  run(how) {
    return this.panel.guard(async () => {
      const asked = { pipeline: this.name, values: this.values(), ...how };
      this.refused = (await this.panel.server.ask('runs', { ...asked, check: true })).fields;
      this.paintForm();
      const wrong = Object.keys(this.refused).length;
      if (wrong) {
        this.panel.say(`${wrong === 1 ? 'A value is' : `${wrong} values are`} refused; nothing was started.`, true);
        return this.form.querySelector('[aria-invalid=true]')?.focus();
      }
      this.panel.say(how.dry ? 'Planning …' : 'Starting …');
      const done = await this.panel.server.ask('runs', asked);
      if (how.dry) return this.panel.say(foretold(done));
      this.panel.say('');
      await this.panel.go('Runs', done.run);
    });
  }
}

// What a run would do, in a sentence.
function foretold(plan) {
  const stale = plan.steps.filter((s) => s.status === 'stale');
  if (!stale.length) return 'Nothing would run: everything is cached.';
  const took = stale.reduce((sum, s) => sum + (s.seconds ?? 0), 0);
  const last = took ? `; they took ${duration(took)} last time` : '';
  return `Would run ${stale.map((s) => s.name).join(', ')}${last}.`;
}
