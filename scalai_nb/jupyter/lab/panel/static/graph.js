// A pipeline as a picture: who waits for whom, from the top down, and how each step stands.
import { h, sign, tone } from './dom.js';

const WIDE = 118, HIGH = 30, GAP = 14, FALL = 26;

// How many steps lie before each, on the longest way.
function depths(steps, edges) {
  const found = new Map();
  for (const step of steps) { // in the order in which they can run
    const before = edges.filter((e) => e[1] === step.name && found.has(e[0]));
    found.set(step.name, Math.max(-1, ...before.map((e) => found.get(e[0]))) + 1);
  }
  return found;
}

export function graph(steps, edges) {
  const depth = depths(steps, edges), rows = [];
  for (const step of steps) (rows[depth.get(step.name)] ??= []).push(step);
  const most = Math.max(...rows.map((row) => row.length));
  const width = most * (WIDE + GAP) - GAP, at = new Map();
  rows.forEach((row, y) => row.forEach((step, i) => {
    const free = width - row.length * (WIDE + GAP) + GAP;
    at.set(step.name, [free / 2 + i * (WIDE + GAP), y * (HIGH + FALL)]);
  }));
  const lines = new Map(edges.map((e) => [`${e[0]}\n${e[1]}`, e])); // one line for several datasets
  const height = rows.length * (HIGH + FALL) - FALL;
  return h('svg', {
    class: 'scalai-graph', viewBox: `-2 -2 ${width + 4} ${height + 4}`, role: 'img',
    style: `max-width: ${width + 4}px`,
    'aria-label': `Graph: ${steps.map((s) => `${s.name} ${s.status}`).join(', ')}`,
  }, [...lines.values()].map((e) => line(at.get(e[0]), at.get(e[1]), e)), steps.map((s) => node(s, at.get(s.name))));
}

function line([x, y], [tx, ty], [source, target]) {
  const fx = x + WIDE / 2, fy = y + HIGH, gx = tx + WIDE / 2, middle = (fy + ty) / 2;
  return h('path', { d: `M${fx} ${fy}C${fx} ${middle} ${gx} ${middle} ${gx} ${ty}` },
    h('title', {}, `${source} → ${target}`));
}

function node(step, [x, y]) {
  const name = step.name.length > 13 ? `${step.name.slice(0, 12)}…` : step.name;
  return h('g', { class: `scalai-node scalai-${tone(step.status)}`, 'data-step': step.name },
    h('title', {}, [step.name, step.status, ...step.reasons].join(' · ')),
    h('rect', { x, y, width: WIDE, height: HIGH, rx: 6 }),
    h('text', { x: x + 10, y: y + 20 }, `${sign(step.status)} ${name}`));
}
