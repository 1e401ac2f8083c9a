// What an explorer asks where no kernel holds its state: the values lie in the page.

export function alone(values) {
  const heard = {};
  return {
    get: (name) => values[name],
    set(name, value) {
      values[name] = value;
      for (const act of heard[`change:${name}`] ?? []) act();
    },
    save_changes() {},
    on: (event, act) => (heard[event] ??= new Set()).add(act),
    off: (event, act) => heard[event]?.delete(act),
  };
}

// Draw an explorer in each of its places on the page, once.
export function drawAlone(kind, render) {
  for (const el of document.querySelectorAll(`.scalai-alone[data-kind="${kind}"]`)) {
    const told = el.querySelector('script');
    if (!told) continue;
    el.replaceChildren();
    render({ model: alone(JSON.parse(told.textContent)), el });
  }
}
