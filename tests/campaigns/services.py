"""Kill what a service consists of, under load: `python tests/campaigns/services.py`

Clients ask a real service by three protocols and report what came true. Meanwhile its workers, its
keeper and its supervisor are killed with SIGKILL, the keeper often in the midst of a commit, and
the alias moves between two versions. Whoever runs a service starts it again when its supervisor is
gone, and so does this. Then the lake holds each prediction that was answered once, and what came
true once; no score was another than that of its version; and no client saw an error, but for
connections that broke by a kill.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Event, Thread

import numpy as np
import xarray as xr

from scalai_nb.data.lake.lake import Lake
from scalai_nb.environment import Environment, environment
from scalai_nb.errors import Conflict, WorkFailed
from scalai_nb.learn.features.transform import Transform
from scalai_nb.learn.linear.regression import LogisticRegression
from scalai_nb.models.package.package import Model, package
from scalai_nb.models.registry.registry import Registry
from scalai_nb.serving.process.service import Service, running

HOURS = xr.Dataset({"hour": ("row", np.arange(24.0))})
KINDS = {"worker": 0.6, "keeper": 0.25, "supervisor": 0.15}  # which share of the kills
CLIENTS = 4
PAUSE = 0.01  # seconds of a client between two requests
WINDOW = 1.0  # seconds after a kill in which connections break by it
STARTED = 3.0  # seconds after which a worker answers: not all are killed at once


def late_after(hour: int) -> Model:
    "A version of the model"
    t = Transform(["hour"]).fit(HOURS)
    fitted = LogisticRegression().fit(t.transform(HOURS), HOURS.hour.values > hour)
    return package(t, fitted, name="late")


def prepared(home: Path, lake: str = ".scalai/lake") -> tuple[Environment, dict[str, np.ndarray]]:
    "A project with two versions of `late`, and the scores of each by hour"
    home.mkdir(parents=True, exist_ok=True)
    (home / "settings.ini").write_text(f"[laptop]\nlake = {lake}\n")
    env = environment("laptop", settings=home / "settings.ini")
    models = late_after(15), late_after(8)
    registry = Registry(env)
    registry.register(models[0], "late", alias="champion")
    registry.register(models[1], "late")
    scores = [np.float32(m.predict(HOURS)) for m in models]
    return env, {"1": scores[0], "2": scores[1]}


# ---- who asks


def body_of(protocol: str, hours: list[int]) -> tuple[str, dict]:
    "Path and body of a request"
    rows = [{"hour": h} for h in hours]
    if protocol == "v1":
        return "/v1/models/late:predict", {"instances": rows}
    if protocol == "v2":
        about = {"name": "hour", "datatype": "FP32", "shape": [len(hours), 1]}
        return "/v2/models/late/infer", {"inputs": [about | {"data": hours}]}
    return "/predict", {"rows": rows}


def scores_of(protocol: str, answer: dict) -> list[float]:
    "The scores in an answer"
    if protocol == "v1":
        return answer["predictions"]
    if protocol == "v2":
        return answer["outputs"][0]["data"]
    return [p["probability"] for p in answer["predictions"]]


class Client(Thread):
    "Asks one thing after another on one connection, and on a new one when that breaks"

    def __init__(self, name: str, port: int, scores: dict[str, np.ndarray], seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.port, self.scores, self.rng = port, scores, random.Random(seed)
        self.enough = Event()
        self.predictions: dict[str, str] = {}  # request id by the id of each row that was answered
        self.told: list[str] = []  # ids whose truth was taken
        self.versions: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.errors: list[str] = []  # what was answered that was no 200
        self.broken: list[float] = []  # when a connection broke
        self.closed = 0  # times that nobody listened

    def run(self) -> None:
        "The loop: what was asked is not asked again when its connection breaks"
        connection, n = HTTPConnection("127.0.0.1", self.port, timeout=30), 0
        while not self.enough.is_set():
            try:
                connection.connect() if connection.sock is None else None
            except OSError:
                self.closed += 1
                time.sleep(0.02)
                continue
            try:
                self.ask(connection, n := n + 1)
            except (OSError, HTTPException):
                self.broken.append(time.monotonic())
                connection.close()
            time.sleep(PAUSE)
        connection.close()

    def send(self, c: HTTPConnection, path: str, body: object, **headers: str) -> dict | None:
        "The answer; None: an error, which is noted"
        headers |= {"content-type": "application/json", "x-client-id": self.name}
        c.request("POST", path, json.dumps(body), headers)
        answer = c.getresponse()
        text = answer.read()
        if answer.status != 200:
            self.errors.append(f"{answer.status} {text[:120].decode()}")
            time.sleep(0.1)
            return None
        return json.loads(text) | {"headers": dict(answer.headers)}

    def ask(self, c: HTTPConnection, n: int) -> None:
        "Ask for scores; of some of them report what came true"
        protocol = self.rng.choice(("v1", "v2", "predict"))
        hours = [self.rng.randrange(24) for _ in range(self.rng.choice((1, 1, 3)))]
        path, body = body_of(protocol, hours)
        request_id = f"{self.name}-{n}"
        answer = self.send(c, path, body, **{"x-request-id": request_id})
        if answer is None:
            return
        id, version = (
            answer["headers"][f"x-{what}"] for what in ("prediction-id", "model-version")
        )
        ids = [id] if len(hours) == 1 else [f"{id}:{i}" for i in range(len(hours))]
        self.predictions |= dict.fromkeys(ids, request_id)
        self.versions[version] += 1
        if not np.array_equal(np.float32(scores_of(protocol, answer)), self.scores[version][hours]):
            self.wrong.append(f"{id}: {answer}")
        if n % 5 == 0 and self.send(c, "/feedback", [{"id": ids[0], "truth": hours[0] > 12}]):
            self.told.append(ids[0])


# ---- what is done to the service


@dataclass
class Struck:
    "A service that is started, killed and started again, and what was done to it"

    env: Environment
    workers: int
    rng: random.Random
    port: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    at: list[float] = field(default_factory=list)  # when something was killed
    down: list[tuple[float, float]] = field(default_factory=list)  # from a kill until it is ready
    since: dict[int, float] = field(default_factory=dict)  # when each worker was first seen
    failed: list[str] = field(default_factory=list)  # a service that did not start
    stack: ExitStack = field(default_factory=ExitStack)
    service: Service | None = None

    def start(self) -> None:
        "As who runs a service would: until the last process of the former one is gone"
        for _ in range(200):
            try:
                options = {"workers": self.workers, "port": self.port, "latency": 5.0}
                self.service = self.stack.enter_context(running("late", self.env, **options))
                self.port = self.port or int(self.service.url.rpartition(":")[2])
                return
            except Conflict:
                time.sleep(0.05)
            except WorkFailed as e:
                self.failed.append(str(e)[-300:])
        raise AssertionError("it never started")

    @property
    def folder(self) -> Path:
        "Of its log"
        return Path(self.env.serving) / "late" / "log"

    def committing(self, seconds: float) -> None:
        """Wait for a commit under way, which is when a kill could double or lose something

        Half of the times also until the lake has it, and the service has not noted that yet.
        """
        until = time.monotonic() + seconds
        while not (plans := [*self.folder.glob("segments/*/plan.json")]):
            if time.monotonic() > until:
                return
            time.sleep(0.001)
        main = Path(self.env.lake) / plans[0].parent.name / "refs" / "branch.main" / "ref.json"
        before = _changed(main)
        if self.rng.random() < 0.5:
            time.sleep(self.rng.uniform(0, 0.15))
            return
        while plans[0].exists() and _changed(main) == before:
            time.sleep(0.0005)
        time.sleep(self.rng.uniform(0, 0.01))

    def victim(self, kind: str) -> int:
        "Process id of whom to kill; 0: not now, as it is not there, or nobody else would answer"
        assert self.service
        state, now = self.service.state, time.monotonic()
        if kind != "worker":
            return state["keeper" if kind == "keeper" else "pid"]
        self.since = {pid: self.since.get(pid, now) for pid in state["workers"] if pid}
        chosen = self.rng.choice(state["workers"])
        others = (t for pid, t in self.since.items() if pid != chosen)
        return chosen if any(now - t > STARTED for t in others) else 0

    def kill(self, kind: str) -> None:
        "Kill a process of a kind; a service without its supervisor is started again"
        assert self.service
        if kind == "keeper" and self.rng.random() < 0.7:
            self.committing(15)
        while not (pid := self.victim(kind)):
            time.sleep(0.01)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.kills[kind] += 1
        self.at.append(begun := time.monotonic())
        if kind == "supervisor":
            self.service.process.wait()
            self.stack.close()
            self.start()
            self.down.append((begun, time.monotonic()))

    def age(self, enough: Event) -> None:
        "Make segments old, so that the keeper commits each second in place of each minute"
        while not enough.wait(0.2):
            for path in self.folder.glob("segments/*/*.arrow"):
                with suppress(OSError):
                    os.utime(path, (0, 0))

    def move(self, moves: int, enough: Event) -> int:
        "Move the alias as often, as long as it takes; how often it was moved"
        registry, done = Registry(self.env), 0
        while done < moves or not enough.is_set():
            if done < moves:
                registry.promote("late", 2 - done % 2)
                done += 1
            enough.wait(self.rng.uniform(0.3, 1.5))
            if enough.is_set() and done >= moves:
                break
        return done


@dataclass(frozen=True)
class Outcome:
    "What a campaign found: figures, of which those of `aims` are to be 0"

    figures: dict[str, int]
    aims: dict[str, int]
    notes: list[str]

    @property
    def wrong(self) -> dict[str, int]:
        "What is not as it should be"
        return {what: n for what, n in self.aims.items() if n}

    def table(self) -> str:
        "Both, a line each"
        lines = [f"{n:>10,}  {what}" for what, n in self.figures.items()]
        lines += [f"{n:>10,}  {what} (is to be 0)" for what, n in self.aims.items()]
        return "\n".join([*lines, *self.notes])


def copies(lake: Lake, dataset: str) -> Counter[str]:
    "How often each id is in a dataset"
    return Counter(lake.read(dataset, columns=["id"]).id.values.tolist())


def _kinds(kills: int, rng: random.Random) -> list[str]:
    "One of each kind, the others by their shares, in any order"
    others = rng.choices([*KINDS], [*KINDS.values()], k=max(0, kills - len(KINDS)))
    kinds = [*KINDS, *others]
    rng.shuffle(kinds)
    return kinds[:kills]


def campaign(kills: int, moves: int, seed: int, home: Path, workers: int = 3) -> Outcome:
    "So many kills and moves under load, and what came of it"
    env, scores = prepared(home)
    struck = Struck(env, workers, random.Random(seed))
    struck.start()
    found = [Client(f"c{i}", struck.port, scores, seed + i) for i in range(CLIENTS)]
    enough, moved = Event(), []
    others = [
        Thread(target=struck.age, args=(enough,), daemon=True),
        Thread(target=lambda: moved.append(struck.move(moves, enough)), daemon=True),
    ]
    began = time.monotonic()
    for thread in (*found, *others):
        thread.start()
    for i, kind in enumerate(_kinds(kills, random.Random(seed))):
        time.sleep(struck.rng.uniform(0.2, 1.2))
        struck.kill(kind)
        asked = sum(len(c.predictions) for c in found)
        seconds = time.monotonic() - began
        print(f"[{i + 1:3}/{kills}] {kind}, {seconds:.0f} s, {asked:,} predictions", flush=True)
    enough.set()
    others[1].join()
    time.sleep(2)
    for client in found:
        client.enough.set()
    for client in found:
        client.join()
    struck.stack.close()  # in order: what is left goes into the lake
    return outcome(struck, found, moved[0], time.monotonic() - began)


def outcome(struck: Struck, found: list[Client], moved: int, seconds: float) -> Outcome:
    "Compare what clients were told with what the lake has"
    lake = Lake(struck.env.lake)
    answered = {id: r for c in found for id, r in c.predictions.items()}
    told = {id for c in found for id in c.told}
    rows = lake.read("late-predictions", columns=["id", "request_id"]).compute()
    logged = Counter(rows.id.values.tolist())
    named = dict(zip(rows.id.values.tolist(), rows.request_id.values.tolist(), strict=True))
    truths = copies(lake, "late-feedback")
    broken = [t for c in found for t in c.broken]
    stray = [t for t in broken if not _by_a_kill(t, struck)]
    errors = [text for c in found for text in c.errors]
    aside = list(struck.folder.glob("quarantine/*"))
    figures = {
        "seconds": int(seconds),
        **{f"kills of a {kind}": struck.kills[kind] for kind in KINDS},
        "moves of the alias": moved,
        "versions of the predictions in the lake": len(lake.log("late-predictions")),
        "rows answered": len(answered),
        "rows in the lake": sum(logged.values()),
        "truths taken": len(told),
        "truths in the lake": sum(truths.values()),
        "connections that broke": len(broken),
        **{f"answers by version {v}": sum(c.versions[v] for c in found) for v in ("1", "2")},
    }
    aims = {
        "scores that are not those of their version": sum(len(c.wrong) for c in found),
        "answered rows that are not in the lake": len(answered.keys() - logged.keys()),
        "rows that are there twice": sum(n > 1 for n in logged.values()),
        "rows under another request's id": sum(named.get(id) != r for id, r in answered.items()),
        "truths taken that are not in the lake": len(told - truths.keys()),
        "truths that are there twice": sum(n > 1 for n in truths.values()),
        "connections that broke without a kill": len(stray),
        "answers that were no 200": len(errors),
        "services that did not start": len(struck.failed),
        "files set aside": len(aside),
    }
    return Outcome(figures, aims, [*errors[:5], *struck.failed[:3]])


def shared(home: Path, rounds: int) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Two services of one name, of two projects, with one lake; they end at once, and start anew

    How often each row was answered, and is in the lake; how often each truth is there.
    """
    lake, asked = str(home / "lake"), []
    projects = [prepared(home / name, lake) for name in "ab"]
    struck = [Struck(env, 1, random.Random(0)) for env, _ in projects]
    for i in range(rounds):
        for service, (_, scores) in zip(struck, projects, strict=True):
            service.start()
            asked.append(Client(f"c{len(asked)}", service.port, scores, seed=i))
            asked[-1].start()
        time.sleep(1)
        for client in asked[-2:]:
            client.enough.set()
            client.join()
            assert not (client.wrong or client.errors or client.broken)
        ending = [Thread(target=service.stack.close) for service in struck]
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join()
    answered = Counter(id for c in asked for id in c.predictions)
    assert sum(len(c.told) for c in asked) > rounds
    return answered, copies(Lake(lake), "late-predictions"), copies(Lake(lake), "late-feedback")


def _changed(path: Path) -> int:
    "When a file was last written; 0: it is not there"
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _by_a_kill(t: float, struck: Struck) -> bool:
    within = any(k - 0.1 <= t <= k + WINDOW for k in struck.at)
    return within or any(a <= t <= b + WINDOW for a, b in struck.down)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--moves", type=int, default=100)
    parser.add_argument("--seed", type=int, default=13)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="services-") as folder:
        found = campaign(words.kills, words.moves, words.seed, Path(folder))
    print(found.table())
    return int(bool(found.wrong))


if __name__ == "__main__":
    sys.exit(main())
