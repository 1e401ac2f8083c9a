"""Alarms arrive: in a chat, a mailbox, a real Alertmanager; what is secret does not travel along"""

import email.policy
import json
import re
import shutil
import ssl
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.request import urlopen

import numpy as np
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from conftest import free_port
from test_door import certificate

from scalai_nb.data.lake.lake import Lake
from scalai_nb.errors import ParameterError
from scalai_nb.monitoring.alarms import Alarm, alarms, amend
from scalai_nb.monitoring.notifying import Notifier
from scalai_nb.monitoring.sinks.notices import SINKS, Notice, NotSent, register, sink, trial

DAY = np.datetime64("2026-01-03", "us")
SECRET = "/services/T0/B0/open-sesame"
ALARM = Alarm(
    *("256ce483", "readings", "drift", "open", DAY, DAY, DAY, None),
    what="<!channel> & temp: mean 20 → 22\nkind: c ↑",
    evidence=9.0,
    shares={"temp": 0.75, "kind": 0.25},
    next="It is over after 2 quiet windows",
)
OPENED = Notice(ALARM, "opened", 1.8e9)
OVER = Notice(replace(ALARM, state="resolved", closed=DAY, next=""), "resolved", 1.8e9)


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("pager:x", "known: alertmanager, log, mailto, slack, webhook"),
        ("alarms.log", "is not in the kinds of sinks"),
        ("slack:NO_HOOK", "NO_HOOK is not set; set it to its address"),
        ("slack:https://hooks.slack.com" + SECRET, "not the secret itself; set SLACK_HOOK"),
        ("slack:", "set SLACK_HOOK"),
        ("slack:WORDS", "WORDS names no server"),
        ("webhook+http://me:open-sesame@host/x", "webhook:SLACK_HOOK"),
        ("webhook+ftp://host/x", "names no server"),
        ("alertmanager:9093", "ALERTMANAGER"),
        ("mailto:ops", "write mailto:NAME@DOMAIN"),
        ("mailto:a@b.org,?server=c:25", "write mailto:NAME@DOMAIN"),
        ("mailto:a@b.org?host=c:25", "known: password, sender, server, tls, user"),
        ("mailto:a@b.org?server=c:smtp", "write HOST:PORT"),
        ("mailto:a@b.org?server=c:25&tls=ssh", "known: none, ssl, starttls"),
        ("mailto:a@b.org?server=c:25&tls=none&user=a", "leave tls= out"),
        ("mailto:a@b.org?server=c:25&user=a", "SCALAI_SMTP_PASSWORD is not set"),
        ("mailto:a@b.org?server=c:25&user=a&password=open-sesame", "not the secret itself"),
    ],
)
def test_what_is_no_address_of_a_sink(address, why, monkeypatch):
    monkeypatch.setenv("WORDS", "open-sesame")
    with pytest.raises(ParameterError, match=re.escape(why)) as said:
        sink(address)
    assert "sesame" not in str(said.value)


def test_a_kind_of_sink_can_be_added(monkeypatch):
    monkeypatch.setattr("scalai_nb.monitoring.sinks.notices.SINKS", dict(SINKS))
    register("file", "scalai_nb.monitoring.sinks.log_sink")
    assert sink("file:x").name == "file:x"


# --- a webhook -----------------------------------------------------------------------------------


class Hook:
    "A server that keeps what was posted, and answers as it is told"

    def __init__(self):
        self.posted, self.status, self.answer = [], 200, b"ok"
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.posted.append((self.path, dict(self.headers), json.loads(body)))
                self.send_response(hook.status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(hook.answer)

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hook():
    made = Hook()
    yield made
    made.server.shutdown()
    made.server.server_close()


def assert_slack(payload):
    "https://docs.slack.dev/reference/block-kit/blocks, as far as it is used"
    assert set(payload) == {"text", "blocks"} and 0 < len(payload["text"]) <= 40_000
    assert len(payload["blocks"]) <= 50
    for block in payload["blocks"]:
        if block["type"] == "header":
            assert block["text"]["type"] == "plain_text" and 0 < len(block["text"]["text"]) <= 150
            continue
        assert block["type"] == "section" and len(block.get("fields", [])) <= 10
        texts = [(t, 2000) for t in block.get("fields", [])]
        texts += [(block["text"], 3000)] if "text" in block else []
        assert texts
        for text, most in texts:
            assert set(text) == {"type", "text"} and text["type"] == "mrkdwn"
            assert 0 < len(text["text"]) <= most
            assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)", text["text"])


@pytest.mark.parametrize("what", [ALARM.what, "<" * 9000, "x" * 9000, "", "&" * 2999])
def test_slack_takes_what_is_posted(hook, monkeypatch, what):
    monkeypatch.setenv("CHAT", hook.url + SECRET)
    shares = {f"{what[:2]}column {i}": 0.01 for i in range(100)}
    for alarm in (replace(ALARM, what=what), replace(ALARM, shares=shares, by="a" * 3000)):
        sink("slack:CHAT").send(Notice(alarm, "opened", 1.8e9))
        path, headers, payload = hook.posted[-1]
        assert_slack(payload)
        assert path == SECRET and headers["Idempotency-Key"] == "256ce483-opened"


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_hook_that_refuses_is_told_of_without_its_address(hook, monkeypatch, status):
    monkeypatch.setenv("CHAT", hook.url + SECRET)
    hook.status, hook.answer = status, f"no_service {SECRET} {hook.url}{SECRET}".encode()
    with pytest.raises(NotSent, match=f"^{status} no_service") as said:
        sink("slack:CHAT").send(OPENED)
    assert "sesame" not in str(said.value) and len(hook.posted) == 1
    assert "sesame" not in repr(sink("slack:CHAT"))


def test_a_name_and_password_in_a_variable_open_the_server(hook, monkeypatch):
    monkeypatch.setenv("CHAT", hook.url.replace("//", "//me:open%20sesame@") + "/x")
    sink("webhook:CHAT").send(OPENED)
    path, headers, _ = hook.posted[-1]
    assert path == "/x" and headers["Authorization"] == "Basic bWU6b3BlbiBzZXNhbWU="


def test_a_hook_that_is_away_is_told_when_it_is_there(hook, monkeypatch, tmp_path, capfd):
    "With what a lake keeps of it: how often it was tried, and nothing that is secret"
    monkeypatch.setenv("CHAT", hook.url + SECRET)
    lake, now = Lake(tmp_path / "lake", author="ada"), [1.8e9]
    amend(lake, "readings", lambda _: [ALARM], "an alarm")
    told = Notifier(lake, "readings", ["slack:CHAT"], clock=lambda: now[0])
    hook.status = 503
    assert told.tell() == ["slack:CHAT was not told: 503 ok; again in 1 min 00 s."]
    hook.status, now[0] = 200, now[0] + 61
    assert told.tell() == [] and len(hook.posted) == 2
    assert alarms(lake, "readings")[0].told["slack:CHAT"]["state"] == "open"
    kept = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert b"sesame" not in kept and "sesame" not in "".join(capfd.readouterr())


# --- mail ----------------------------------------------------------------------------------------


@contextmanager
def mail_server(tmp_path, **options):
    "A real SMTP server, and the letters that it has taken"

    class Box:
        letters = []

        async def handle_DATA(self, server, session, envelope):
            self.letters.append((envelope.rcpt_tos, envelope.content))
            return "250 OK"

    box = Box()
    controller = Controller(box, hostname="localhost", port=free_port(), **options)
    controller.start()
    try:
        yield controller.port, box.letters
    finally:
        controller.stop()


def parsed(content):
    return email.message_from_bytes(content, policy=email.policy.default)


def test_a_letter_arrives_and_those_of_an_alarm_are_a_thread(tmp_path):
    with mail_server(tmp_path) as (port, letters):
        to = f"mailto:ops@example.org,ada@example.org?server=localhost:{port}&sender=a@example.org"
        for notice in (OPENED, OPENED, OVER):
            sink(to).send(notice)
        first, again, over = (parsed(content) for _, content in letters)
        assert letters[0][0] == ["ops@example.org", "ada@example.org"]
        assert first["Subject"] == "[alarm] Opened: Drift of readings in temp, kind"
        assert first["Message-ID"] == again["Message-ID"] == over["In-Reply-To"]
        assert over["Subject"].startswith("[alarm] Resolved")
        text = first.get_content()
        assert "temp: mean 20 → 22" in text and "Explained by: temp 75\xa0%, kind 25\xa0%" in text


def test_a_mailbox_is_opened_over_tls_alone(tmp_path, monkeypatch):
    def login(server, session, envelope, mechanism, data):
        ok = isinstance(data, LoginPassword) and data.password == b"open-sesame"
        return AuthResult(success=ok, handled=False, auth_data="bot" if ok else None)

    made = certificate(tmp_path, "localhost")
    secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secure.load_cert_chain(made["tls_cert"], made["tls_key"])
    options = {"tls_context": secure, "require_starttls": True, "authenticator": login}
    monkeypatch.setenv("BOX", "open-sesame")
    with mail_server(tmp_path, **options, auth_required=True) as (port, letters):
        to = f"mailto:ops@example.org?server=localhost:{port}&tls=starttls&user=bot&password=BOX"
        with pytest.raises(NotSent, match="SSLCertVerificationError"):
            sink(to).send(OPENED)
        monkeypatch.setenv("SSL_CERT_FILE", made["tls_cert"])
        sink(to).send(OPENED)
        assert len(letters) == 1
        monkeypatch.setenv("BOX", "open-barley")
        with pytest.raises(NotSent, match="535 of localhost") as said:
            sink(to).send(OPENED)
        assert "barley" not in str(said.value) and "sesame" not in sink(to).name


def test_a_mail_server_that_is_away_is_named():
    port = free_port()
    with pytest.raises(NotSent, match=f"localhost:{port}: ConnectionRefusedError"):
        sink(f"mailto:ops@example.org?server=localhost:{port}").send(OPENED)


def test_no_column_s_name_writes_a_header(tmp_path):
    with mail_server(tmp_path) as (port, letters):
        evil = replace(ALARM, shares={"temp\r\nBcc: eve@example.org": 1.0})
        to = f"mailto:ops@example.org?server=localhost:{port}"
        sink(to).send(Notice(evil, "opened", 1.8e9))
        tos, content = letters[0]
        assert tos == ["ops@example.org"] and parsed(content)["Bcc"] is None


# --- Alertmanager --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alertmanager(tmp_path_factory):
    "The real one of Debian"
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if not program:
        pytest.skip("no Alertmanager; make test-services installs it")
    folder, port = tmp_path_factory.mktemp("alertmanager"), free_port()
    (folder / "config.yml").write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
    words = [program, f"--config.file={folder / 'config.yml'}", f"--storage.path={folder}"]
    words += [f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        until(lambda: alerts(port) == [], f"{(folder / 'log')}")
        yield port
    finally:
        process.terminate()
        process.wait(30)


def alerts(port: int) -> list[dict] | None:
    "The alerts that fire; None: it does not answer yet"
    try:
        with urlopen(f"http://127.0.0.1:{port}/api/v2/alerts", timeout=10) as answer:
            return json.load(answer)
    except OSError:
        return None


def until(condition, what, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_an_alert_fires_once_and_ends_with_the_alarm(alertmanager):
    to = sink(f"alertmanager+http://127.0.0.1:{alertmanager}?severity=page&link=http://dash/x")
    now = time.time()
    for _ in range(2):
        to.send(replace(OPENED, at=now))
    (alert,) = alerts(alertmanager)
    known = {"alertname": "ScalaiDrift", "dataset": "readings", "kind": "drift"}
    assert alert["labels"] == known | {"alarm": "256ce483", "severity": "page"}
    assert alert["status"]["state"] == "active" and alert["generatorURL"] == "http://dash/x"
    assert alert["startsAt"].startswith("2026-01-03T00:00:00")
    assert alert["annotations"]["summary"] == "Drift of readings in temp, kind"
    to.send(replace(OPENED, alarm=replace(ALARM, state="acknowledged", by="ada"), at=now))
    assert alerts(alertmanager)[0]["annotations"]["by"] == "ada"
    to.send(replace(OVER, at=now))
    until(lambda: alerts(alertmanager) == [], "it still fires")


def test_alertmanager_is_told_again_of_what_lasts(alertmanager, tmp_path):
    "It forgets alerts when it starts anew; no commit is made of telling it again"
    lake, now = Lake(tmp_path / "lake", author="ada"), [time.time()]
    amend(lake, "readings", lambda _: [ALARM], "an alarm")
    address = f"alertmanager+http://127.0.0.1:{alertmanager}?team=again"
    told = Notifier(lake, "readings", [address], clock=lambda: now[0])
    assert told.tell() == []
    versions, sent = len(lake.log("readings.alarms")), []
    told.listeners[address].sink.send = lambda notice: sent.append(notice.event)
    told.tell()
    now[0] += 61
    told.tell()
    assert sent == ["opened"] and len(lake.log("readings.alarms")) == versions


def test_a_test_says_that_it_is_one(alertmanager, hook):
    sink(f"alertmanager+http://127.0.0.1:{alertmanager}").send(trial(time.time()))
    (alert,) = [a for a in alerts(alertmanager) if a["labels"]["alertname"] == "ScalaiTest"]
    assert alert["annotations"]["summary"].startswith("TEST, nothing has happened")
    sink(f"webhook+{hook.url}/x").send(trial(time.time()))
    assert_slack(hook.posted[0][2])
    assert hook.posted[0][2]["text"].startswith("TEST")
