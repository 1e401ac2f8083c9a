// What ties the panel to JupyterLab. Its modules are JupyterLab's own, whichever version that is.
import { Chip } from './chip.js';
import { h } from './dom.js';
import { Notices } from './notices.js';
import { Panel } from './panel.js';
import { Server } from './server.js';

const ICON = `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24"><g class="jp-icon3" fill="none"
stroke="#616161" stroke-width="2"><circle cx="6" cy="5" r="3"/><circle cx="18" cy="12" r="3"/><circle cx="6" cy="19" r="3"/>
<path d="M9 6l6 5M9 18l6-5"/></g></svg>`;

export async function make(shared, here) {
  const names = [
    '@jupyterlab/application', '@jupyterlab/apputils', '@jupyterlab/notebook', '@jupyterlab/services',
    '@jupyterlab/settingregistry', '@jupyterlab/ui-components', '@lumino/widgets',
  ];
  const [application, apputils, notebooks, services, settings, ui, lumino] = await Promise.all(names.map(shared));
  const { Dialog, ICommandPalette, Notification, showDialog } = apputils, { Widget } = lumino;

  function activate(app, palette, restorer, registry) {
    document.head.append(Object.assign(document.createElement('link'), {
      rel: 'stylesheet', href: new URL('panel.css', here).href,
    }));
    const server = new Server(services.ServerConnection, app.serviceManager.serverSettings);
    const widget = new Widget();
    const panel = new Panel(server, { visible: () => widget.isVisible, open });
    widget.id = 'scalai-panel';
    widget.node.style.minWidth = '320px';
    widget.node.append(panel.node);
    widget.title.caption = 'scalai: pipelines and runs';
    widget.title.icon = new ui.LabIcon({ name: 'scalai:panel', svgstr: ICON });
    widget.node.setAttribute('role', 'region');
    widget.node.setAttribute('aria-label', widget.title.caption);
    widget.onAfterShow = () => panel.wake();
    widget.onAfterHide = () => server.attend();
    app.shell.add(widget, 'left', { rank: 450 });
    restorer?.add(widget, widget.id);
    document.addEventListener('visibilitychange', () => {
      server.attend();
      if (panel.awake()) panel.wake();
    });

    const show = async (tab, what) => {
      app.shell.activateById(widget.id);
      await panel.wake();
      if (tab) await panel.guard(() => panel.go(tab, what));
      if (!panel.node.contains(document.activeElement)) panel.focus();
    };
    app.commands.addCommand('scalai:show', {
      label: 'Pipelines and runs (scalai)',
      execute: (args) => show(args?.tab, args?.what),
    });
    palette?.addItem({ command: 'scalai:show', category: 'scalai' });

    // Open a notebook; at a cell if its id is given, on a kernel of the server if that is.
    async function open(path, cell, kernel) {
      const opened = await app.commands.execute('docmanager:open', kernel ? { path, kernel: { id: kernel } } : { path });
      const session = opened?.context?.sessionContext;
      if (kernel && session) {
        await session.ready;
        if (session.session?.kernel?.id !== kernel) await session.changeKernel({ id: kernel });
      }
      if (!cell || !opened?.content?.widgets) return opened;
      await opened.context.ready;
      await opened.revealed;
      const at = opened.content.widgets.findIndex((c) => c.model.id === cell);
      if (at < 0) throw new Error('The failing cell is no longer in this notebook.');
      opened.content.activeCellIndex = at;
      await opened.content.scrollToItem?.(at, 'center');
      opened.content.activate();
      return opened;
    }

    const printed = (text) => new Widget({ node: h('pre', { class: 'scalai-said' }, text) });
    const say = (title, text) => showDialog({ title, body: printed(text), buttons: [Dialog.okButton()] });
    const ask = async (title, text) => (await showDialog({ title, body: printed(text) })).button.accept;
    app.docRegistry.addWidgetExtension('Notebook', {
      createNew: (notebook, context) => {
        const chip = new Chip(server, () => context.path, {
          visible: () => notebook.isVisible,
          show, ask, say, save: () => context.save(), revert: () => context.revert(),
        });
        const shown = new Widget({ node: chip.node });
        notebook.toolbar.insertItem(10, 'scalai', shown);
        context.ready.then(() => {
          chip.refresh();
          server.attend();
        });
        context.saveState.connect((_, state) => state === 'completed' && chip.changed());
        const shownAgain = (_, { newValue }) => {
          if (newValue !== notebook) return;
          server.attend();
          chip.changed();
        };
        app.shell.currentChanged?.connect(shownAgain);
        notebook.disposed.connect(() => {
          app.shell.currentChanged?.disconnect(shownAgain);
          chip.close();
        });
        return shown;
      },
    });

    let settled = null; // the user's settings, once they are there
    registry?.load('scalai-nb:panel').then((found) => { settled = found; }, () => {});
    const tell = (text, failed, notebook) => {
      const panel = notebook.parent, name = panel.title.label;
      const show = () => {
        window.focus();
        app.shell.activateById(panel.id);
      };
      Notification.emit(`${name}: ${text}`, failed ? 'error' : 'success', {
        autoClose: false,
        actions: [{ label: 'Show', callback: show }],
      });
      if (document.hidden && window.Notification?.permission === 'granted') { // nobody is asked for it
        new window.Notification(name, { body: text }).onclick = show;
      }
    };
    const notices = new Notices({ limit: () => settled?.get('notice').composite ?? 30, tell });
    const { NotebookActions } = notebooks;
    NotebookActions.executionScheduled.connect((_, what) => notices.scheduled(what));
    NotebookActions.executed.connect((_, what) => notices.executed(what));
  }

  return [{
    id: 'scalai-nb:panel',
    description: 'Pipelines, runs, datasets, models and kernels of a project',
    autoStart: true,
    optional: [ICommandPalette, application.ILayoutRestorer, settings.ISettingRegistry],
    activate,
  }];
}
