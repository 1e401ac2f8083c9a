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
