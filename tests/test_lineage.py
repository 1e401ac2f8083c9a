"What `scalai lake log --lineage` promises: who wrote and who used each version, in any project"

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from toy import Project

from scalai_nb.cli import main
from scalai_nb.data.lake.lake import Lake
from scalai_nb.environment import environment
from scalai_nb.learn.features.transform import Transform
from scalai_nb.models.package.package import package
from scalai_nb.models.registry.registry import Registry

DECLARED = "from scalai_nb.pipeline import In, Out, read, write\n"


@pytest.fixture
def project(tmp_path, database, monkeypatch):
    "A file that was ingested, a step that reads it, and one that reads what the first has written"
    p = Project(tmp_path, database=database)
    (tmp_path / "raw.csv").write_text("x\n" + "\n".join(map(str, range(40))))
    p.step("00_make", f'{DECLARED}raw: In = "raw"\na: Out = "a"', "write(a, read(raw) * 2)")
    p.step("01_use", f'{DECLARED}a: In = "a"\nb: Out = "b"', "write(b, read(a) + 1)")
    monkeypatch.chdir(tmp_path)
    return p


@pytest.fixture
def scalai(capsys):
    def call(*words: str) -> tuple[str, str]:
        with pytest.raises(SystemExit):
            main([*words])
        return tuple(capsys.readouterr())

    return call


def learn(lake: Lake, env, name: str) -> str:
    "Register a model that has learned from the newest version of a dataset"
    ds = lake.read(name)
    transform = Transform(["x"]).fit(ds)
    estimator = LogisticRegression().fit(transform.transform(ds), ds.x.values > 20)
    model = package(transform, estimator, name="m", card={"learned_from": ds.encoding["source"]})
    return str(Registry(env).register(model, "m", alias="champion"))


def test_where_versions_come_from_and_who_used_them(project, scalai):
    scalai("ingest", "raw.csv", "raw")
    told = scalai("lake", "log", "raw", "--lineage")[0]  # neither runs nor models are there
    assert "← from raw.csv, by " in told and "→" not in told
    run = json.loads(project.said("run", "toy", "--json").stdout)["id"]
    again = json.loads(project.said("run", "toy", "--json").stdout)
    assert {s["status"] for s in again["steps"]} == {"cached"}
    env = environment("laptop")
    lake = Lake(env.lake)
    raw, a, b = (lake.version(name).id for name in ("raw", "a", "b"))
    model = learn(lake, env, "a")
    lake.write("a", lake.read("a") * np.float64(1), message="by hand")
    lake.restore("a", a)
    told = scalai("lake", "log", "a", "--lineage")[0]
    assert f"← a@{a[:6]}, restored" in told and "← by hand, by " in told
    assert f"← make of raw@{raw[:6]}, in {run}" in told
    assert f"→ use to b@{b[:6]}, in {run}" in told and again["id"] not in told
    assert f"→ model {model} (champion)" in told
    found = json.loads(scalai("lake", "log", "a", "--lineage", "--json")[0])
    first = found["versions"][-1]
    assert first["writer"]["read"] == {"raw": raw} and first["version"]["id"] == a
    assert [(w["step"], w["written"]) for w in first["readers"]] == [("use", {"b": b})]
    assert first["models"] == [model] and found["aliases"] == {model: ["champion"]}
    assert [v["writer"] for v in found["versions"][:-1]] == [None, None]
    assert scalai("lake", "log", f"a@{a}", "--lineage", "--svg", "a.svg") == ("", "")
    assert run in (project.root / "a.svg").read_text().replace("&#160;", " ")

    two = json.loads(scalai("lake", "log", "a", "--lineage", "-n", "2", "--json")[0])["versions"]
    assert two == found["versions"][:2]
    assert len(json.loads(scalai("lake", "log", "a", "-n", "1", "--json")[0])) == 1
    record = project.root / ".scalai/runs" / again["id"] / "events.jsonl"
    record.write_bytes(record.read_bytes().replace(b'"inputs"', b'"inputs', 1))
    told = scalai("lake", "log", "a", "--lineage")[0]
    assert f"in {run}" in told and "cannot be read" in " ".join(told.split())
    assert "Did you mean" in scalai("lake", "log", "aa", "--lineage")[1]
