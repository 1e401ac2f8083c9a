"What public objects show of themselves: small HTML in which no name is executed, and short text"

import numpy as np
import pandas as pd
import pytest
from toy import Project

import scalai_nb as sn
from scalai_nb.pipeline.pipeline import Pipeline
from scalai_nb.pipeline.plan import Plan
from scalai_nb.pipeline.run import load_run

EVIL = "<script>alert(1)</script>"
NAMES = "Contract Summary Drift Transform Evaluation Training Verdict Model".split()
OF_PROJECTS = "Plan Pipeline Run Lake Version Diff Registry Environment".split()


@pytest.fixture(scope="module")
def learned():
    "Objects about data of 300 columns, one of which has a name that is HTML"
    rng, n = np.random.default_rng(0), 600
    frame = pd.DataFrame({f"c{i}": rng.normal(size=n) for i in range(300)})
    frame[EVIL] = rng.choice(["<b>a</b>", "c"], n)
    frame["y"] = (frame.c0 + rng.normal(size=n) > 0).astype(int)
    ds = sn.from_frame(frame)
    contract, s = sn.Contract.infer(ds, label="y"), sn.summarize(ds)
    ds = contract.attach(ds)
    training = sn.train({EVIL: sn.LogisticRegression()}, ds)
    fitted = training.fit()
    model = sn.package(fitted.transform, fitted.estimator, contract, summary=fitted.summary)
    return {
        "Contract": contract,
        "Summary": s,
        "Drift": sn.drift(s, s),
        "Transform": fitted.transform,
        "Evaluation": sn.evaluate(frame.y, model.predict(ds), by=frame[EVIL]),
        "Training": training,
        "Verdict": sn.judge(model, ds, "y", {"auc": ">= 0.5"}),
        "Model": model,
    }


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    "Objects of a project: of its run, its lake and its registry"
    project = Project(tmp_path_factory.mktemp("displays"))
    project.step(
        "01_make",
        'from scalai_nb.pipeline import Out\nrows: Out = "rows"',
        "import xarray as xr\nfrom scalai_nb.pipeline import write\n"
        'write(rows, xr.Dataset({"x": ("row", [1.0])}), message="<script>alert(1)</script>")',
        title=EVIL,
    )
    done = project.said("run", "toy")
    assert done.returncode == 0, done.stderr
    env = sn.environment("laptop", settings=project.root / "settings.ini")
    lake, pipeline = sn.Lake(env.lake), Pipeline.load("toy", env)
    first = lake.version("rows")
    second = lake.write("rows", sn.from_frame(pd.DataFrame({"x": [2.0], EVIL: [1.0]})))
    return {
        "Plan": Plan.make(pipeline, env),
        "Pipeline": pipeline,
        "Run": load_run(env, "latest"),
        "Lake": lake,
        "Version": first,
        "Diff": lake.diff("rows", first, second),
        "Registry": sn.Registry(env),
        "Environment": env,
    }


@pytest.mark.parametrize("name", [*NAMES, *OF_PROJECTS])
def test_what_is_shown_is_small_and_harmless(name, request):
    shown = request.getfixturevalue("learned" if name in NAMES else "kept")[name]
    html, text = shown._repr_html_(), repr(shown)
    assert "<script" not in html
    assert len(html.encode()) < 200_000
    assert len(text) < 25_000 and "object at 0x" not in text


def test_the_rest_of_many_rows_is_counted(learned):
    assert "… and 262 more" in learned["Contract"]._repr_html_()


def test_a_password_is_not_shown(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[laptop]\ntracking = http://me:pa55word@host/\n")
    env = sn.environment("laptop", settings=tmp_path / "settings.ini")
    assert "host" in env._repr_html_() and "pa55word" not in env._repr_html_() + repr(env)
