// What JupyterLab loads: a federated module, written by hand. The rest comes when it is asked for.
(() => {
  const here = new URL('./', document.currentScript.src);
  let scope = {};

  // A module of JupyterLab itself: another extension may have brought one of the same name.
  const shared = async (name) => {
    const versions = Object.values(scope[name] ?? {});
    const own = versions.find((v) => (v.from ?? '').startsWith('@jupyterlab/application'));
    const found = own ?? versions[0];
    if (!found) throw new Error(`JupyterLab does not share ${name}`);
    return (await found.get())();
  };

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB['scalai-nb'] = {
    init: (given) => { scope = given; },
    get: async () => {
      const plugin = await import(new URL('plugin.js', here));
      const made = await plugin.make(shared, here);
      return () => ({ __esModule: true, default: made });
    },
  };
})();
