// Says that a long cell has ended when its notebook is not seen; the browser says it too if it may.
import { duration } from './dom.js';

const LINE = 60; // characters of a cell that are shown

export class Notices {
  constructor(lab) {
    this.lab = lab; // limit(), tell(text, failed, notebook)
    this.asked = new WeakMap(); // cell -> when it was to be executed
    this.ended = new WeakMap(); // notebook -> when a cell of it has ended last
  }

  scheduled({ cell }) {
    this.asked.set(cell, Date.now());
  }

  // A kernel takes one cell after the other: this one has begun when the one before had ended.
  executed({ notebook, cell, success }) {
    const now = Date.now();
    const begun = Math.max(this.asked.get(cell) ?? now, this.ended.get(notebook) ?? 0);
    this.ended.set(notebook, now);
    const seconds = (now - begun) / 1000, limit = this.lab.limit();
    const seen = notebook.isVisible && !document.hidden;
    if (seen || !limit || seconds < limit) return;
    const end = success ? 'done' : 'failed';
    const text = `${first(cell)} – ${end} after ${duration(seconds)}`;
    this.lab.tell(text, !success, notebook);
  }
}

// The first line of a cell in which something is written.
function first(cell) {
  const lines = cell.model.sharedModel.getSource().split('\n').map((line) => line.trim());
  const found = lines.find(Boolean) ?? '';
  return found.length > LINE ? `${found.slice(0, LINE - 1)}…` : found;
}
