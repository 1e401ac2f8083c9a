"""The gate: goals, slices, latency, examples and contract

It says what it cannot measure; past it only with a reason that is kept.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression

import scalai_nb as sn
from scalai_nb.errors import Conflict, ContractViolation, ParameterError, ScalaiError, WorkFailed
from scalai_nb.learn.features.transform import Transform
from scalai_nb.models.registry import gate as module
from scalai_nb.models.registry.compatibility import incompatibilities, narrowed
from scalai_nb.models.registry.gate import Evidence, Limits, judge, latencies
from scalai_nb.models.package.package import package
from scalai_nb.models.registry.registry import Registry
from scalai_nb.models.registry.release import examine, release
from scalai_nb.models.registry.verdict import Check, Verdict

GOALS = {"auc": ">= 0.65", "recall": ">= 0.5", "alerts": "<= 0.6", "ece": "<= 0.06"}


def flights(rows, seed=0, offset=0):
    "Flights whose lateness comes from hour and wind, which blows at LGA alone; 20 days of them"
    rng = np.random.default_rng(seed)
    origin, hour = rng.integers(0, 3, rows).astype("i1"), rng.integers(5, 24, rows)
    wind = np.where(origin == 2, rng.gamma(4, 3, rows), 0)
    late = rng.random(rows) < 1 / (1 + np.exp(6 - hour / 4 - wind / 4))
    day = np.datetime64("2013-04-01") + (offset + rng.integers(0, 20, rows)).astype(
        "timedelta64[D]"
    )
    return xr.Dataset(
        {
            "origin": ("row", origin, {"categories": ["EWR", "JFK", "LGA"]}),
            "wind": ("row", wind, {"units": "knots"}),
            "hour": ("row", hour.astype(float)),
            "date": ("row", day.astype("datetime64[ns]")),
            "late": ("row", late),
        }
    )


def model(train, numeric=("hour", "wind"), contract=None, label="late", **card):
    t = Transform(list(numeric), ["origin"]).fit(train)
    contract = contract or sn.Contract.infer(train, label=label, time="date")
    card = {"threshold": 0.25, "learned_to": "2013-03-31"} | card
    return package(
        t,
        LogisticRegression(C=100).fit(t.transform(train).values, train[label].values),
        contract,
        name="late",
        card=card,
        summary=sn.summarize(train[["hour", "wind", "origin"]]),
    )


TRAIN, NEW = flights(6000, 1, offset=-30), flights(6000, 2)


@pytest.fixture(scope="module")
def champion():
    return model(TRAIN)


@pytest.fixture(scope="module")
def blind():
    "A model that has learned nothing from the wind: it is worse at LGA alone"
    return model(TRAIN.assign(wind=TRAIN.wind[np.random.default_rng(3).permutation(6000)].variable))


def check(verdict, name):
    (found,) = [c for c in verdict.checks if c.name == name]
    return found


def test_goals_are_measured_as_evaluate_does(champion):
    goals = {
        "auc": ">= 0.6",
        "roc_auc": "> 0.6",
        "pr_auc": ">= 0.1",
        "log_loss": "<= 1",
        "brier": "<= 0.3",
        "ece": "<= 0.1",
        "recall": ">= 0.5",
        "precision": ">= 0.2",
        "alerts": "<= 0.9",
        "share": "<= 0.9",
        "f1": ">= 0.2",
        "false_positive_rate": "<= 0.9",
        "lift": ">= 1",
    }
    verdict = judge(champion, NEW, "late", goals)
    e = sn.evaluate(NEW.late, champion.predict(NEW))
    at = e.at(0.25)
    expected = {
        "auc": e.roc_auc,
        "roc_auc": e.roc_auc,
        "alerts": at.share,
        **{n: getattr(e, n) for n in ("pr_auc", "log_loss", "brier", "ece")},
    }
    expected |= {
        n: getattr(at, n)
        for n in ("recall", "precision", "share", "f1", "false_positive_rate", "lift")
    }
    assert (
        {n: check(verdict, n).value for n in goals} == pytest.approx(expected)
        and verdict.passed
        and verdict.rows == 6000
    )
    auc = check(verdict, "auc")
    assert (
        (auc.low, auc.high) == pytest.approx(e.roc_auc_interval())
        and auc.goal == ">= 0.6"
        and check(verdict, "recall").low == pytest.approx(at.interval("recall")[0])
    )
    assert check(verdict, "champion").reason == "there is none yet"


def test_one_goal_missed_refuses(champion):
    for name, goal in {"auc": ">= 0.99", "alerts": "<= 0.01"}.items():
        verdict = judge(champion, NEW, "late", GOALS | {name: goal})
        assert (
            not verdict.passed
            and verdict.reason == f"fails {name}"
            and not check(verdict, name).met
            and check(verdict, "recall").met
        )


def test_a_goal_nobody_can_measure_is_a_failed_check(champion):
    verdict = judge(champion, NEW, "late", GOALS | {"punctualty": ">= 0.9"})
    found = check(verdict, "punctualty")
    assert (
        not verdict.passed
        and found.value is None
        and "cannot be measured; pass measured={'punctualty': …}" in found.reason
    )
    given = judge(
        champion,
        NEW,
        "late",
        GOALS | {"punctuality": ">= 0.9"},
        evidence=Evidence(measured={"punctuality": 0.95, "unasked": 1}),
    )
    assert (
        given.passed
        and check(given, "punctuality").value == 0.95
        and "unasked" not in given.measured
    )


def test_what_the_card_does_not_say(champion):
    bare = replace(
        champion,
        card={k: v for k, v in champion.card.items() if k not in ("threshold", "learned_to")},
        summary_file=None,
    )
    verdict = judge(
        bare, NEW, "late", {"recall": ">= 0", "freshness_days": "<= 999", "drift": "<= 9"}
    )
    assert [c.value for c in verdict.checks[:3]] == [None] * 3 and not any(
        c.met for c in verdict.checks[:3]
    )
    assert (
        "needs a threshold" in check(verdict, "recall").reason
        and "learned_to" in check(verdict, "freshness_days").reason
    )
    assert check(
        judge(bare, NEW, "late", {"recall": ">= 0"}, limits=Limits(threshold=0.2)), "recall"
    ).met


def test_one_class_cannot_be_judged(champion):
    with pytest.raises(
        ContractViolation, match="'late' is True in all .* rows; two classes or more are needed"
    ):
        judge(champion, NEW.isel(row=NEW.late.values), "late", {"auc": ">= 0"})


def test_labels_of_two_names(champion):
    named = NEW.assign(
        came=("row", np.where(NEW.late, "late", "in time").astype(object)),
        code=("row", NEW.late.values.astype("i1"), {"categories": ["in time", "late"]}),
    )
    expected = judge(champion, NEW, "late", GOALS)
    assert judge(champion, named, "code", GOALS) == expected
    assert check(judge(champion, named, "came", {"auc": ">= 0"}), "auc").value == pytest.approx(
        check(expected, "auc").value
    )
    lost = NEW.assign(late=("row", np.where(np.arange(6000) % 3, NEW.late, np.nan)))
    with pytest.raises(
        ContractViolation, match="2,000 of 6,000 rows have no label 'late'; leave them out"
    ):
        judge(champion, lost, "late", GOALS)


def test_the_goals_of_the_card(champion):
    stated = replace(
        champion,
        card={
            **champion.card,
            "goals": {"auc": {"goal": ">= 0.99", "value": 0.7, "met": False}, "ece": "<= 0.5"},
        },
    )
    verdict = judge(stated, NEW, "late")
    assert verdict.reason == "fails auc" and check(verdict, "ece").met
    with pytest.raises(ParameterError, match="The gate needs goals"):
        judge(champion, NEW, "late")


def test_later_months_are_warnings(champion):
    verdict = judge(champion, NEW, "late", GOALS)
    later = judge(champion, flights(6000, 5).assign(late=NEW.late), "late", GOALS)
    both = verdict.beside("May", later)
    assert (
        verdict.passed
        and not later.passed
        and both.passed
        and "watch auc in May" in both.reason
        and both.checks[: len(verdict.checks)] == verdict.checks
    )


def test_freshness_and_drift(champion):
    goals = {"freshness_days": "<= 92", "drift": "<= 0.2"}
    verdict = judge(champion, NEW, "late", goals, evidence=Evidence(at="2013-04-10"))
    assert check(verdict, "freshness_days").value == 10 and verdict.passed
    moved = NEW.assign(wind=3 * NEW.wind)
    assert check(
        judge(champion, moved, "late", goals, evidence=Evidence(at="2013-04-10")), "drift"
    ).reason.startswith("wind has moved most of 3")
    assert (
        judge(champion, moved, "late", goals, evidence=Evidence(at="2013-04-10")).reason
        == "fails drift"
    )
    assert check(judge(champion, NEW, "late", goals), "freshness_days").value > 4000  # today


def test_worse_on_a_slice_refuses(champion, blind):
    goals = {"auc": ">= 0.6"}
    verdict = judge(blind, NEW, "late", goals, champion=champion, by=["origin"])
    lga, jfk = (check(verdict, f"roc_auc of origin {o}") for o in ("LGA", "JFK"))
    assert (
        check(verdict, "auc").met
        and not verdict.passed
        and not lga.met
        and lga.high < 0
        and "worse, and not by chance" in lga.reason
    )
    assert jfk.met and jfk.low <= 0 <= jfk.high and jfk.goal == ">= champion"
    other = judge(champion, NEW, "late", goals, champion=blind, by=["origin"])
    assert other.passed and check(other, "roc_auc of origin LGA").low > 0
    losses = judge(
        blind,
        NEW,
        "late",
        goals,
        champion=champion,
        by=["origin"],
        limits=Limits(measures=["log_loss", "brier"]),
    )
    assert (
        not check(losses, "log_loss of origin LGA").met
        and check(losses, "log_loss of origin LGA").low > 0
        and check(losses, "brier of origin JFK").goal == "<= champion"
    )
    tolerant = judge(
        blind, NEW, "late", goals, champion=champion, by=["origin"], limits=Limits(margin=0.3)
    )
    assert tolerant.passed and check(tolerant, "roc_auc of all rows").goal == ">= champion - 0.3"


def test_the_same_model_is_as_good(champion):
    verdict = judge(
        champion,
        NEW,
        "late",
        GOALS,
        champion=champion,
        by=["origin"],
        limits=Limits(groups="date", measures=["roc_auc", "log_loss", "recall"]),
    )
    assert (
        verdict.passed
        and sum("champion" in c.goal for c in verdict.checks) == 12
        and check(verdict, "log_loss of all rows").goal == "<= champion"
    )


def test_few_rows_cannot_tell(champion, blind):
    "A slice with few rows is a warning; all rows being few refuses"
    keep = (NEW.origin.values != 2) | (np.arange(6000) < 60)
    verdict = judge(
        blind, NEW.isel(row=keep), "late", {"auc": ">= 0.6"}, champion=champion, by="origin"
    )
    lga = check(verdict, "roc_auc of origin LGA")
    assert (
        verdict.passed
        and not lga.met
        and not lga.decides
        and "too few to tell" in lga.reason
        and verdict.reason.endswith("watch roc_auc of origin LGA")
    )
    verdict = judge(champion, NEW.isel(row=slice(0, 40)), "late", {"auc": ">= 0"}, champion=blind)
    assert not verdict.passed and not check(verdict, "roc_auc of all rows").met


def test_scores_of_models_that_had_not_seen_the_rows(champion, blind):
    held = NEW.assign(mine=champion.predict(NEW), theirs=blind.predict(NEW))
    a = judge(champion, NEW, "late", GOALS, champion=blind, by="origin")
    b = judge(
        champion,
        held,
        "late",
        GOALS,
        champion=blind,
        by="origin",
        evidence=Evidence(score="mine", champion_score=held.theirs),
    )
    assert a == b
    flat = judge(champion, held, "late", GOALS, evidence=Evidence(score=np.full(6000, 0.3)))
    assert check(flat, "auc").value == 0.5 and not flat.passed


def test_rows_it_has_learned_from_are_a_warning(champion):
    verdict = judge(champion, TRAIN, "late", GOALS)
    seen = check(verdict, "new rows")
    assert (
        not seen.met
        and not seen.decides
        and "6,000 rows are from before 2013-03-31" in seen.reason
        and verdict.passed
    )
    assert all(
        c.name != "new rows"
        for c in judge(
            champion, TRAIN, "late", GOALS, evidence=Evidence(score=champion.predict(TRAIN))
        ).checks
    )


class Slow:
    "A model that takes its time"

    def __init__(self, model, ms):
        self.model, self.ms = model, ms

    def __getattr__(self, name):
        return getattr(self.model, name)

    def predict(self, ds):
        from time import sleep

        sleep(self.ms / 1000)
        return self.model.predict(ds)


def test_latency_by_the_ratio(champion):
    slow, half = Slow(champion, 40), Slow(champion, 20)
    new, old = latencies([slow, champion], NEW, calls=10)
    assert len(new) == 10 and new.min() >= 40 and np.median(old) < np.median(new)
    alone = check(
        judge(champion, NEW, "late", {"latency_ms": "<= 1000"}, limits=Limits(calls=20)),
        "latency_ms",
    )
    assert alone.met and "95 % of 20 single rows" in alone.reason
    found = module._latency(slow, half, NEW, 10, None)
    assert found.value >= 40 and "times the champion's" in found.reason
    scaled = module._latency(
        slow, half, NEW, 10, 10.0
    )  # nearly twice as slow as one that takes 10 ms in service
    assert 10 < scaled.value < 40 and "which takes 10.00 ms in service" in scaled.reason


def test_a_package_that_scores_otherwise_here(champion):
    wrong = replace(champion, examples={**champion.examples, "scores": [0.5] * 100})
    verdict = judge(wrong, NEW, "late", GOALS)
    assert not check(verdict, "examples").met and verdict.reason == "fails examples"


def test_incompatible_contracts(champion):
    served, train = champion, TRAIN.assign(gust=TRAIN.wind + 3)
    assert incompatibilities(served, served) == [] == narrowed(served, served)
    assert incompatibilities(served, model(train, ("hour", "wind", "gust"))) == [
        "needs 'gust', a number, which the served model does not ask for"
    ]
    assert (
        incompatibilities(model(train, ("hour", "wind", "gust")), served) == []
    )  # what is not needed may still be sent
    knots = TRAIN.assign(wind=TRAIN.wind.assign_attrs(units="m/s"))
    assert incompatibilities(served, model(knots)) == [
        "takes 'wind' in m/s, the served model in knots"
    ]
    timed = TRAIN.assign(
        hour=("row", np.datetime64("2013-01-01", "ns") + TRAIN.hour.values.astype("timedelta64[h]"))
    )
    assert incompatibilities(served, model(timed)) == [
        "takes 'hour' as a time, the served model as a number"
    ]
    assert incompatibilities(
        served, model(TRAIN.assign(cancelled=TRAIN.late), label="cancelled")
    ) == ["predicts 'cancelled', the served model 'late'"]
    counted = model(TRAIN.assign(late=TRAIN.late.astype("i1")))
    assert incompatibilities(served, counted) == [
        "its label 'late' has dtype int8, that of the served model bool"
    ]
    assert incompatibilities(served, replace(served, card={**served.card, "output": "value"})) == [
        "gives a value, the served model a probability"
    ]
    fewer = TRAIN.isel(row=TRAIN.origin.values < 2)
    fewer = fewer.assign(origin=fewer.origin.assign_attrs(categories=["EWR", "JFK"]))
    assert incompatibilities(served, model(fewer)) == [] and narrowed(served, model(fewer)) == [
        "has not met LGA of 'origin'"
    ]
    bare = replace(served, contract=None)
    assert incompatibilities(bare, model(knots)) == [] and narrowed(bare, served) == []


def test_an_incompatible_challenger_is_refused_a_narrower_one_is_watched(champion):
    gusts = TRAIN.assign(gust=TRAIN.wind + 3)
    verdict = judge(
        model(gusts, ("hour", "wind", "gust")),
        NEW.assign(gust=NEW.wind + 3),
        "late",
        GOALS,
        champion=champion,
    )
    assert (
        verdict.reason == "fails contract"
        and check(verdict, "contract").reason
        == "it needs 'gust', a number, which the served model does not ask for"
    )
    fewer = TRAIN.isel(row=TRAIN.origin.values < 2)
    narrow = judge(
        model(fewer.assign(origin=fewer.origin.assign_attrs(categories=["EWR", "JFK"]))),
        NEW,
        "late",
        {"auc": ">= 0.5"},
        champion=champion,
        limits=Limits(margin=1),
    )
    assert narrow.passed and narrow.reason == "passes every check that decides; watch categories"


def test_a_verdict_reads_back(champion, blind):
    verdict = judge(
        blind, NEW, "late", GOALS | {"unheard": "<= 1"}, champion=champion, by=["origin"]
    )
    text = json.dumps(verdict.to_dict(), allow_nan=False)
    assert Verdict.from_dict(json.loads(text)) == verdict and json.loads(text)["passed"] is False
    assert list(verdict.table.columns) == [
        "check",
        "goal",
        "value",
        "low",
        "high",
        "met",
        "decides",
        "reason",
    ] and len(verdict.table) == len(verdict.checks)
    assert (
        str(verdict).startswith("refused: late fails unheard, roc_auc of all rows")
        and "<b>NO</b>" in verdict._repr_html_()
    )
    assert "<script>" not in replace(verdict, model="<script>")._repr_html_()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"goals": {}}, "The gate needs goals"),
        ({"goals": {"auc": "high"}}, "is not a goal"),
        ({"label": "lat"}, "'lat' is not in the columns; .*Did you mean 'late'"),
        ({"by": ["airline"]}, "'airline' is not in the columns"),
        ({"limits": Limits(groups="dat")}, "Did you mean 'date'"),
        ({"evidence": Evidence(score="p")}, "'p' is not in the columns"),
        ({"data": NEW.isel(row=slice(0, 0))}, "has no rows"),
        ({"label": "hour"}, "The gate judges two classes; 'hour' has 19: 5.0, 6.0"),
        ({"evidence": Evidence(score=np.zeros(5))}, "One value a row each is needed"),
        (
            {
                "challenger": SimpleNamespace(name="delay", card={"output": "value"}),
                "label": "origin",
            },
            "'delay' gives a number, and 'origin' holds none",
        ),
        ({"limits": Limits(measures=["auc"])}, "'auc' is not in the measures that can be compared"),
    ],
)
def test_what_cannot_be_judged(champion, change, message):
    with pytest.raises(ScalaiError, match=message):
        judge(
            **(
                {
                    "challenger": champion,
                    "data": NEW,
                    "label": "late",
                    "goals": GOALS,
                    "champion": champion,
                }
                | change
            )
        )


# ---- releases


def two(registry, champion, blind):
    for m in (champion, blind):
        registry.register(m, "late")
    release(registry, "late", 1, judge(champion, NEW, "late", GOALS))
    return judge(blind, NEW, "late", {"auc": ">= 0.6"}, champion=champion, by=["origin"])


def test_release_goes_by_the_verdict(registry, champion, blind):
    refused = two(registry, champion, blind)
    assert (
        registry.get("late").version == 1
        and registry.history("late")[0]["evidence"]["gate"]["passed"]
    )
    with pytest.raises(
        WorkFailed,
        match=(
            "late@2 is not promoted: it fails roc_auc of all rows, roc_auc of origin LGA. "
            "Mend it, or give a reason to override"
        ),
    ):
        release(registry, "late", 2, refused)
    for empty in ("", "  "):
        with pytest.raises(ParameterError, match="An override needs a reason"):
            release(registry, "late", 2, refused, override=empty)
    assert len(registry.history("late")) == 1
    v = release(registry, "late", 2, refused, override="LGA is closed", by="Ada")
    last = registry.history("late")[-1]
    assert v.version == 2 and (last["by"], last["reason"], last["evidence"]["override"]) == (
        "Ada",
        "override: LGA is closed",
        "LGA is closed",
    )
    assert Verdict.from_dict(last["evidence"]["gate"]) == refused and registry.verify("late") == 2
    assert registry.rollback("late").version == 1


def test_judged_first_and_released_later(registry, champion, blind):
    two(registry, champion, blind)
    with pytest.raises(
        WorkFailed, match="late@2 has not been judged; run: scalai models gate late@2"
    ):
        release(registry, "late", 2)
    options = {"by": ["origin"], "who": "Ada"}
    v, refused = examine(
        registry, "late", NEW, "late", {"auc": ">= 0.6"}, limits=Limits(calls=20), **options
    )  # the newest
    assert v.version == 2 and not refused.passed
    with pytest.raises(WorkFailed, match="not promoted: it fails roc_auc"):
        release(registry, "late", 2)
    v, good = examine(
        registry,
        "late@2",
        NEW,
        "late",
        {"auc": ">= 0.6", "latency_ms": "<= 10000"},
        limits=Limits(margin=0.3, calls=20),
        **options,
    )
    assert (
        good.passed
        and registry.get("late").version == 1
        and [r["action"] for r in registry.history("late")] == ["promote", "judge", "judge"]
    )
    assert (
        registry.history("late")[-1]["reason"].startswith("passed: late passes every check")
        and registry.history("late")[-1]["by"] == "Ada"
    )
    assert (
        release(registry, "late", 2, reason="summer").version == 2
        and registry.verify("late") == 4
        and registry.history("late")[-1]["reason"] == "summer"
    )
    registry.promote("late", 1, alias="challenger")
    v, back = examine(
        registry,
        "late",
        NEW,
        "late",
        {"auc": ">= 0.6", "latency_ms": "<= 10000"},
        limits=Limits(calls=20),
    )
    assert (
        v.version == 1
        and back.passed
        and f"which takes {check(good, 'latency_ms').value:.2f} ms in service"
        in check(back, "latency_ms").reason
    )
    assert registry.rollback("late").version == 1


def test_the_champion_must_be_the_one_judged_against(registry, champion, blind):
    verdict = judge(champion, NEW, "late", GOALS)  # when there was none
    for m in (champion, blind):
        registry.register(m, "late")
    registry.promote("late", 2)
    with pytest.raises(
        Conflict,
        match=(
            "late@1 was judged against another champion than late@2, which serves now; judge "
            "it again"
        ),
    ):
        release(registry, "late", 1, verdict)
    against = judge(champion, NEW, "late", GOALS, champion=blind)
    with pytest.raises(Conflict, match="The verdict is about another model than late@2"):
        release(registry, "late", 2, against)
    assert release(registry, "late", 1, against).version == 1


def test_a_promoter_in_between_is_told(registry, champion, blind, monkeypatch):
    "Another promotes after the verdict was read and before the alias moves"
    for m in (champion, blind, champion):
        registry.register(m, "late")
    registry.promote("late", 1)
    verdict = judge(champion, NEW, "late", GOALS, champion=champion)
    promote = Registry.promote

    def slow(self, *a, **k):
        promote(Registry(self.env), "late", 2)
        return promote(self, *a, **k)

    monkeypatch.setattr(Registry, "promote", slow)
    with pytest.raises(Conflict, match="late@champion is version 2 and not 1"):
        release(registry, "late", 3, verdict)
    monkeypatch.undo()
    assert registry.get("late").version == 2


def test_a_check_without_a_value_is_no_number():
    verdict = Verdict(
        "m",
        "d",
        None,
        1,
        (Check("x", False, "cannot be measured"), Check("y", True, "", value=1.0)),
    )
    assert verdict.measured == {"y": 1.0} and verdict.table.value.isna().tolist() == [True, False]
