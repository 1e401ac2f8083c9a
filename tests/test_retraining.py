"""A model is trained again when the policy says so, and no mistake of it stays in service"""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LinearRegression, LogisticRegression
from toy import Project

from scalai_nb.data.lake.lake import Lake
from scalai_nb.describe.summary import summarize
from scalai_nb.environment import environment
from scalai_nb.errors import Conflict, WorkFailed
from scalai_nb.learn.features.transform import Transform
from scalai_nb.models.package.package import package
from scalai_nb.models.registry.registry import Registry
from scalai_nb.monitoring.alarms import Alarm
from scalai_nb.monitoring.policy import Policy, asked, recorded, seconds
from scalai_nb.monitoring.retraining import Known, Loop, decided, labelled
from scalai_nb.serving.log.feedback import joined

DAY = np.timedelta64(86_400_000_000, "us")
START = np.datetime64("2026-03-01", "us")


# --- the policy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_no_policy_is_overstepped_whatever_asks(seed):
    "Alarms and dates at random: cool-down and budget hold, and nothing trains without a cause"
    rng = random.Random(seed)
    policy = Policy(
        "late",
        every=rng.choice([None, 5 * 86_400.0, 90 * 86_400.0]),
        cool_down=rng.choice([0.0, 86_400.0, 20 * 86_400.0]),
        budget=rng.randint(1, 9),
    )
    now, kept = START, []
    for _ in range(400):
        now = now + seconds(rng.expovariate(1 / (3 * 86_400)))
        alarm = now if rng.random() < 0.4 else None
        decision = asked(policy, kept, START, now, alarm)
        if alarm is not None:
            assert decision is not None
        elif policy.every is None:
            assert decision is None
        if decision and recorded(kept, decision):
            kept.append(decision)
    trained = np.array([d.time for d in kept if d.action == "train"])
    assert len(trained) and (np.diff(trained) >= seconds(policy.cool_down)).all()
    assert all(((trained > t - 365 * DAY) & (trained <= t)).sum() <= policy.budget for t in trained)
    assert all(a != b for a, b in zip(kept, kept[1:], strict=False))


def test_a_policy_heeds_its_kinds_of_alarms_alone():
    def alarm(kind, state="open"):
        days = START + DAY, START + DAY, START + DAY
        return Alarm("x", "late-predictions", kind, state, *days, None, "", 0.0, {}, "")

    paged, any_kind = Policy("late", kinds=("goal", "concept")), Policy("late")
    assert paged.since([alarm("drift")]) is None
    assert paged.since([alarm("drift"), alarm("goal")]) == START + DAY
    assert any_kind.since([alarm("drift")]) == START + DAY
    assert any_kind.since([alarm("drift", "resolved")]) is None


# --- the loop -------------------------------------------------------------------------------------


def rows(n, wet, seed=0) -> xr.Dataset:
    "Deliveries: where it is wet, the short ones are late"
    rng = np.random.default_rng(seed)
    far = rng.normal(0, 1, n)
    late = rng.random(n) < 1 / (1 + np.exp(3 * far if wet else -3 * far))
    return xr.Dataset({"far": ("row", far), "late": ("row", late)})


def model(wet):
    ds = rows(2_000, wet, seed=1)
    transform = Transform(["far"]).fit(ds)
    estimator = LogisticRegression().fit(transform.transform(ds), ds.late)
    card = {"goals": {"auc": ">= 0.05"}}
    return package(transform, estimator, name="late", card=card, summary=summarize(ds[["far"]]))


MODELS = {}


def learned(wet):
    if wet not in MODELS:
        MODELS[wet] = model(wet)
    return MODELS[wet]


def log(lake, at, ds, truth, model="late", output="probability", **attrs):
    "What a service logs, and what came true"
    n = ds.sizes["row"]
    ids = np.array([f"{at}-{i}" for i in range(n)], object)
    said = {name: v for name, v in ds.data_vars.items() if name != truth}
    said |= {"id": ("row", ids), "time": ("row", np.full(n, at))}
    said |= {"version": ("row", np.full(n, "1", object)), "score": ("row", np.full(n, 0.5))}
    told = {"id": ("row", ids), "received": ("row", np.full(n, at))}
    named = ds[truth].dtype.kind in "OU"
    told["truth"] = ("row", np.full(n, np.nan) if named else ds[truth].values.astype(float))
    told |= {"truth_class": ds[truth].astype(object)} if named else {}
    attrs = {"name": model, "output": output, "threshold": 0.5} | attrs
    for name, columns in ((f"{model}-predictions", said), (f"{model}-feedback", told)):
        put = lake.append if name in lake.names() else lake.write
        put(name, xr.Dataset(columns, attrs=attrs))


class System:
    "A lake, a registry with a champion that learned when it was dry, and a loop"

    def __init__(self, folder: Path, registry: Registry, trains=True, **policy):
        self.folder, self.day = folder, 0
        self.lake, self.registry = Lake(folder / "lake"), registry
        registry.register(learned(False), "late", alias="champion")
        self.trains, self.trained = trains, 0
        self.policy = Policy("late", rows=150, **policy)

    @property
    def loop(self) -> Loop:
        lock = self.folder / "late.lock"
        return Loop(self.lake, self.registry, "late", self.policy, self.train, lock)

    def train(self, parameters):
        self.trained += 1
        if isinstance(self.trains, Exception):
            raise self.trains
        if self.trains is not None:
            self.registry.register(learned(self.trains), "late")
        return "a-run"

    def step(self, alarm=True, loop=None) -> str:
        decision = (loop or self.loop).step(START if alarm else None, START + self.day * DAY)
        return decision.action if decision else ""

    def pass_day(self, wet=None):
        "A day goes by; 200 rows whose truth is known, if the weather is said"
        self.day += 1
        if wet is not None:
            log(self.lake, START + self.day * DAY - DAY // 2, rows(200, wet, self.day), "late")

    def champion(self) -> int:
        return self.registry.champion("late").version


@pytest.fixture
def system(tmp_path, registry):
    return System(tmp_path, registry)


def test_a_better_model_is_promoted_and_kept(system):
    assert system.step(alarm=False) == ""
    assert [system.step(), system.step(), system.step()] == ["train", "challenge", ""]
    assert "challenger" in system.registry.get("late", 2).aliases and system.champion() == 1
    system.pass_day(wet=True)
    assert system.step() == "promote" and system.champion() == 2
    assert system.step() == ""  # no row has come since
    system.pass_day(wet=True)
    assert system.step(alarm=False) == "keep" and system.step(alarm=False) == ""
    assert system.step() == "wait" and system.step() == ""  # once, not at each look
    *_, promoted, kept, waits = decided(system.lake, "late")
    assert (promoted.version, promoted.former) == (2, 1) and promoted.why.startswith("by watch: ")
    assert json.loads(kept.verdict)["checks"] and "cool-down lasts until 2026-03-08" in waits.why
    assert system.trained == 1


def test_a_worse_model_is_refused(system):
    system.step(), system.step()
    system.pass_day(wet=False)
    assert system.step() == "refuse" and system.champion() == 1
    refused = decided(system.lake, "late")[-1]
    assert "fails roc_auc of all rows" in refused.why
    system.day = 8
    assert system.step() == "train"


def test_what_serves_and_is_worse_is_rolled_back(system):
    system.step(), system.step()
    system.pass_day(wet=True)
    assert system.step() == "promote"
    system.pass_day(wet=False)
    assert system.step() == "roll back" and system.champion() == 1
    assert "beside version 1 it fails" in decided(system.lake, "late")[-1].why


def test_a_person_decides_where_the_policy_says_so(tmp_path, registry):
    system = System(tmp_path, registry, approval=True)
    system.step(), system.step()
    system.pass_day(wet=True)
    assert system.step() == "hold" and system.champion() == 1
    assert "scalai models promote late 2" in decided(system.lake, "late")[-1].why
    assert system.step() == ""
    system.registry.promote("late", 2, reason="I looked at it", by="grace")
    assert system.step() == "promote"
    assert decided(system.lake, "late")[-1].why == "by grace: I looked at it"
    system.registry.rollback("late", "it was the wrong one", by="grace")
    assert system.step() == "roll back"
    assert decided(system.lake, "late")[-1].why == "by grace: it was the wrong one"


@pytest.mark.parametrize("labels", ["none", "few", "of one kind"])
def test_without_truth_a_person_decides_and_at_last_nobody(system, labels):
    system.step(), system.step()
    system.day = 1
    few = {"few": 100, "of one kind": 400}.get(labels, 0)
    one = rows(few, True).assign(late=("row", np.zeros(few, bool)))
    if few:
        log(system.lake, START + DAY, rows(few, True) if labels == "few" else one, "late")
    assert system.step() == ""
    system.day = 31
    assert system.step() == "hold" and system.champion() == 1
    assert "no 150 rows whose truth is known within 30 days" in decided(system.lake, "late")[-1].why
    system.day = 62
    assert system.step() == "refuse"
    assert "nobody has decided within 30 days" in decided(system.lake, "late")[-1].why


@pytest.mark.parametrize(
    "trains, why",
    [
        (WorkFailed("run late-1 is failed; scalai show late-1"), "scalai show late-1"),
        (None, "run a-run registered no new version"),
    ],
)
def test_a_training_that_fails_counts_as_one(tmp_path, registry, trains, why):
    system = System(tmp_path, registry, trains)
    assert [system.step(), system.step(), system.step()] == ["train", "fail", "wait"]
    assert why in decided(system.lake, "late")[1].why and system.champion() == 1


def test_a_pipeline_may_promote_by_itself(system):
    train = system.train

    def with_its_own_gate(parameters):
        run = train(parameters)
        system.registry.promote("late", 2, reason="its own gate", by="run")
        return run

    system.train = with_its_own_gate
    assert [system.step(), system.step()] == ["train", "promote"]
    assert decided(system.lake, "late")[-1].why == "by run: its own gate"


@pytest.mark.parametrize("when", range(4))
def test_a_watcher_that_dies_after_it_acted_goes_on_and_acts_once(system, when):
    "What was done, and not written down, is found in the registry"
    acts = [
        lambda: None,
        lambda: None,
        lambda: system.pass_day(True),
        lambda: system.pass_day(False),
    ]
    for n, act in enumerate(acts):
        act()
        if n == when:
            loop = system.loop
            loop._keep = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
            with pytest.raises(KeyboardInterrupt):
                system.step(loop=loop)
        assert system.step() == ["train", "challenge", "promote", "roll back"][n]
    assert system.trained == 1 and system.champion() == 1
    assert [r["action"] for r in system.registry.history("late") if r["alias"] == "champion"] == [
        "promote",
        "promote",
        "rollback",
    ]


def test_of_two_watchers_one_decides(system):
    loop, other = system.loop, system.loop
    keep = loop._keep
    loop._keep = lambda *args: (system.step(loop=other), keep(*args))
    with pytest.raises(Conflict, match="Another watcher has decided about 'late'"):
        system.step(loop=loop)
    assert [d.action for d in decided(system.lake, "late")] == ["train"]


def test_a_look_reads_what_came_since_the_challenger_began_and_each_row_once(tmp_path, monkeypatch):
    lake, read = Lake(tmp_path), []
    monkeypatch.setattr("scalai_nb.monitoring.retraining._BLOCK", 100)
    loaded = Known._new

    def new(known, ds, time):
        for first, block in loaded(known, ds, time):
            read.append(block.sizes["row"])
            yield first, block

    monkeypatch.setattr(Known, "_new", new)
    for day in range(20):
        log(lake, START + day * DAY, rows(100, False, seed=day), "late")
    known = Known(lake, "late", START + 18 * DAY)
    assert known.look().sizes["row"] == sum(read) / 2 == 200
    for day in range(20, 24):
        log(lake, START + day * DAY, rows(50, False, seed=day), "late")
        found = known.look()
    assert sum(read) == 2 * (200 + 4 * 50)
    again = Known(lake, "late", START + 18 * DAY).look()
    assert found.id.values.tolist() == again.id.values.tolist() and len(again.row) == 400
    np.testing.assert_array_equal(found.truth, again.truth)
    whole = joined(lake, "late", since=START + 18 * DAY)
    assert dict(zip(whole.id.values, whole.truth.values, strict=True)) == dict(
        zip(found.id.values, found.truth.values, strict=True)
    )
    lake.write("late-predictions", lake.read("late-predictions").isel(row=slice(-60, None)).load())
    assert known.look().sizes["row"] == 60


# --- other tasks ----------------------------------------------------------------------------------


def test_numbers_and_classes_are_judged_by_what_came_true(tmp_path):
    lake, rng = Lake(tmp_path), np.random.default_rng(0)
    far = xr.Dataset({"far": ("row", rng.normal(0, 1, 300)), "time": ("row", rng.random(300))})
    transform = Transform(["far", "time"]).fit(far)
    x = transform.transform(far)
    price = package(transform, LinearRegression().fit(x, far.far * 3), name="price")
    said = far.rename(time="input_time").assign(price=("row", 3.0 * far.far.values))
    log(lake, START, said, "price", "price", "value")
    found = labelled(lake, price, "price", START)
    assert [*found] == ["far", "time", "truth"]
    np.testing.assert_array_equal(found.truth, said.price)
    kind = np.array(["a", "b", "c"])[np.digitize(far.far, [-0.5, 0.5])]
    several = package(transform, LogisticRegression().fit(x, kind), name="kind")
    number = said.drop_vars("price").assign(kind=("row", kind))
    log(lake, START, number, "kind", "kind", "probabilities", classes=["a", "b", "c"])
    shares = {f"score_{c}": ("row", np.zeros(300)) for c in "abc"}
    lake.write("kind-predictions", lake.read("kind-predictions").load().assign(shares))
    assert labelled(lake, several, "kind", START).truth.values.tolist() == kind.tolist()


# --- the command ----------------------------------------------------------------------------------

STEP = """
import numpy as np, xarray as xr, scalai_nb as sn
from sklearn.linear_model import LogisticRegression
from scalai_nb.pipeline import write
rng = np.random.default_rng(int(np.datetime64(until).astype("M8[s]").astype(int) % 1000))
far = rng.normal(2, 1, 2_000)
late = rng.random(2_000) < 1 / (1 + np.exp(3 * (far - 2)))
ds = xr.Dataset({"far": ("row", far), "late": ("row", late)})
transform = sn.Transform(["far"]).fit(ds)
estimator = LogisticRegression().fit(transform.transform(ds), ds.late)
card = {"goals": {"auc": ">= 0.6"}}
summary = sn.summarize(ds[["far"]])
write(scorer, sn.package(transform, estimator, name=scorer, card=card, summary=summary))
"""


def test_the_command_trains_judges_and_promotes(tmp_path, database):
    project = Project(tmp_path, database=database)
    contract = (
        'from scalai_nb.pipeline import Out, Model\nscorer: Out[Model] = "late"\nuntil: str = ""'
    )
    project.step("01_train", contract, STEP, pipeline="late")
    env = environment("laptop", settings=tmp_path / "settings.ini")
    lake, registry = Lake(env.lake), Registry(env)
    registry.register(learned(False), "late", alias="champion")
    now = np.datetime64("now", "us")

    def serve(at):
        ds = rows(400, wet=True, seed=len(lake.names()))
        log(lake, at, ds.assign(far=ds.far + 2), "late")

    serve(now - 2 * DAY)
    serve(now - DAY)
    words = (
        "watch",
        "late",
        "--retrain",
        "late",
        "-p",
        "train.until={now}",
        "--judge-rows",
        "300",
    )
    dry = project.said(*words, "--dry-run", "--once")
    assert dry.returncode == 0, dry.stderr
    assert not {"late.decisions", "late-predictions.watch"} & {*lake.names()}
    would = project.said(*words, "--replay")
    assert would.returncode == 0 and "nothing was decided" in would.stdout
    once = project.said(*words, "--once")
    assert once.returncode == 0, once.stderr
    assert [d.action for d in decided(lake, "late")] == ["train", "challenge"], once
    assert "challenge" in once.stdout and "train" in once.stderr
    would = project.said(*words, "--replay", "--json")
    assert json.loads(would.stdout)[0]["action"] == "train"
    serve(np.datetime64("now", "us") + np.timedelta64(1, "s"))
    again = project.said(*words, "--once", "--json")
    assert again.returncode == 0, again.stderr
    assert registry.champion("late").version == 2
    said = json.loads(project.said("decisions", "late", "--json").stdout)
    assert [d["action"] for d in said] == ["train", "challenge", "promote"]
    typo = project.said(*words[:4], "-p", "trian.until={now}", "--once")
    assert typo.returncode == 2 and "Did you mean 'train'?" in typo.stderr
    wrong = project.said("watch", "late", "--replay")
    assert wrong.returncode == 2 and "--replay goes with --retrain PIPELINE" in wrong.stderr


def test_a_goal_of_the_pipeline_that_is_broken_in_service_pages(tmp_path, database):
    project = Project(tmp_path, database=database)
    contract = """from scalai_nb.pipeline import Goal, Model, Out
scorer: Out[Model] = "late"
auc: Goal = ">= 0.6 for 2 windows"
"""
    project.step("01_train", contract, "pass", pipeline="late")
    env = environment("laptop", settings=tmp_path / "settings.ini")
    lake = Lake(env.lake)
    Registry(env).register(learned(False), "late", alias="champion")
    pager = tmp_path / "pager"
    words = "watch", "late", "--once", "--notify", f"goal=log:{pager}"
    for day in range(3):
        log(lake, START + day * DAY, rows(400, wet=True, seed=day), "late")
        if day == 1:
            assert project.said(*words).returncode == 0
            assert not pager.exists()  # one window has missed it
    log(lake, START + 3 * DAY, rows(400, wet=True, seed=3), "late")
    assert project.said(*words).returncode == 0
    (page,) = map(json.loads, pager.read_text().splitlines())
    assert page["kind"] == "goal" and "asked >= 0.6 for 2 windows" in page["what"]
    assert "Goal of late-predictions in auc" in project.said("alarms").stdout
