// The server's answers, and the stream of what has changed.

// An answer that is no success: its sentence, and what is wrong with which field.
export class Refusal extends Error {
  constructor(said) {
    super(said.message ?? 'The server did not answer as expected; look at its log.');
    this.fields = said.fields ?? {};
  }
}

export class Server {
  constructor(connection, settings) {
    this.connection = connection; // JupyterLab's: it knows token and XSRF
    this.settings = settings;
    this.env = '';
    this.listeners = new Set();
  }

  address(path, query = {}) {
    const found = new URL(`${this.settings.baseUrl}scalai/${path}`);
    const given = this.env ? { env: this.env, ...query } : query;
    for (const [name, value] of Object.entries(given)) found.searchParams.set(name, value);
    return found.href;
  }

  // What a path answers; a body makes it a POST.
  async ask(path, body, query) {
    const init = body === undefined ? {} : { method: 'POST', body: JSON.stringify(body) };
    const answer = await this.connection.makeRequest(this.address(path, query), init, this.settings);
    const said = await answer.json();
    if (!answer.ok) throw new Refusal(said);
    return said;
  }

  // Listen as long as somebody wants to hear and the page can be seen.
  attend() {
    const wanted = this.listeners.size > 0 && !document.hidden
      && [...this.listeners].some((l) => l.awake());
    if (wanted && !this.stream) this.listen();
    if (!wanted && this.stream) {
      this.stream.abort();
      this.stream = null;
    }
  }

  tell(ids) {
    for (const listener of this.listeners) if (listener.awake()) listener.changed(ids);
  }

  // null is told after every gap: anything may have changed.
  async listen() {
    const stream = (this.stream = new AbortController());
    for (let wait = 500; this.stream === stream; wait = Math.min(wait * 2, 15000)) {
      try {
        const init = { signal: stream.signal, cache: 'no-store' };
        const answer = await this.connection.makeRequest(this.address('events'), init, this.settings);
        if (!answer.ok) throw new Refusal({ message: `${answer.status}` });
        this.tell(null);
        for await (const ids of lines(answer.body)) {
          wait = 500;
          this.tell(ids);
        }
      } catch (error) {
        if (this.stream !== stream) return;
      }
      await new Promise((done) => setTimeout(done, wait));
    }
  }
}

// The data of each event of a stream.
async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const found = (rest + value).split('\n\n');
    rest = found.pop();
    for (const event of found) if (event.startsWith('data: ')) yield JSON.parse(event.slice(6));
  }
}
