"The contract cell: what is accepted, what is refused in which words, and what is a step's code"

import json
import subprocess
import sys
import textwrap
from datetime import date, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from scalai_nb.errors import ParameterError, StepError
from scalai_nb.goals import Goal
from scalai_nb.pipeline.reading.parameter import Parameter, Secret, source
from scalai_nb.pipeline.step import Step, parse_assignments


def notebook(
    path,
    contract="",
    *code,
    heading="# A step\n\n> What it is for",
    kernel="python3",
    tags=("parameters",),
):
    "Write a notebook with a contract cell; its other cells are `code`"
    cell = lambda kind, text, tags=(): {
        "cell_type": kind,
        "metadata": {"tags": list(tags)},
        "source": textwrap.dedent(text).strip().splitlines(True),
    }
    cells = [
        cell("markdown", heading),
        cell("code", contract, tags),
        *(cell("code", c) for c in code),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "cells": cells,
                "metadata": {"kernelspec": {"name": kernel}},
                "nbformat": 4,
                "nbformat_minor": 5,
            }
        )
    )
    return path


@pytest.fixture
def load(tmp_path):
    "Write a notebook and load it"
    return lambda *cells, name="03_features.ipynb", **kw: Step.load(
        notebook(tmp_path / name, *cells, **kw)
    )


def test_everything_a_contract_may_say(load):
    step = load("""
        from datetime import date, datetime
        from pathlib import Path
        from typing import Annotated, Literal, Optional
        from scalai_nb.pipeline import Goal, In, Model, Out, Secret

        # a comment of its own says nothing about a parameter
        flights:  In = "flights@raw"        # dataset read
        features: Out = "features"
        scorer:   Out[Model] = "late-flight"
        champion: In[Model]
        recall:   Goal = ">= 0.60"          # share of # late flights
        token:    Secret = "API_TOKEN"
        n: int | None = None; m: Optional[int] = -3
        a = b = 0.5
        text: str = "a=b # no comment"
        months: list[int] = [               # months to learn from
            1, 2,
        ]
        limits: dict[str, list[float]] = {"temp": [-1, +2.5]}
        kind: Literal["linear",
                      "boosted"] = 'linear'  # what to fit
        file: Annotated[Path, "where"] = Path("data") ; day: date = date(2013, 1, 2)
        since = datetime(2013, 1, 1, hour=6)
        inner: "dict" = {"x": None}
        flag = True
        """)
    p = step.parameters
    assert {n: (q.kind, q.referent) for n, q in p.items() if q.kind != "value"} == {
        "flights": ("in", "dataset"),
        "features": ("out", "dataset"),
        "scorer": ("out", "model"),
        "champion": ("in", "model"),
        "recall": ("goal", None),
        "token": ("secret", None),
    }
    assert [n for n, q in p.items() if q.required] == ["champion"]
    assert (
        step.reads == {"flights": ("dataset", "flights", "raw")}
        and str(step.reads["flights"]) == "flights@raw"
    )
    assert step.writes == {
        "features": ("dataset", "features", None),
        "scorer": ("model", "late-flight", None),
    }
    helps = {
        "recall": "share of # late flights",
        "months": "months to learn from",
        "kind": "what to fit",
        "text": "",
        "features": "",
    }
    assert {n: p[n].help for n in helps} == helps
    values = {n: q.default for n, q in p.items() if q.kind == "value"}
    assert values == {
        "n": None,
        "m": -3,
        "a": 0.5,
        "b": 0.5,
        "text": "a=b # no comment",
        "months": [1, 2],
        "limits": {"temp": [-1, 2.5]},
        "kind": "linear",
        "file": Path("data"),
        "day": date(2013, 1, 2),
        "since": datetime(2013, 1, 1, 6),
        "inner": {"x": None},
        "flag": True,
    }
    assert (
        {n: q.type for n, q in p.items()}["a"] == "float"
        and p["since"].type == "datetime"
        and p["flag"].type == "bool"
    )
    assert p["flights"].line == 7 and step.where("flights").endswith(
        "03_features.ipynb:cell 2 line 7"
    )


def test_the_markers_work_as_annotations():
    code = (
        "from scalai_nb.pipeline import Goal, In, Out, Secret\n"
        'x: In = "x"\n'
        'y: Out["Model"] = "y"\n'
        'z: Goal = "> 1"\n'
        'assert y == "y" and In[int].__args__ == (int,)'
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("contract", "line", "says"),
    [
        ("x: int = range(3)", 1, "x: `range(3)` is not a constant; write the value out"),
        ("\nimport os\nx: str = os.environ['HOME']", 2, "`os.environ['HOME']` is not a constant"),
        ("x: list[int] = [i for i in y]", 1, "is not a constant"),
        ("x: datetime = datetime.now()", 1, "`datetime.now()` is not a constant"),
        ("x: datetime = datetime(2013, 13, 1)", 1, "`datetime(2013, 13, 1)` is not a constant"),
        ("x: dict = {**y}", 1, "is not a constant"),
        ("x: int = 'a'", 1, "x: 'a' is not of type int; write a value such as 7."),
        ("x: int = True", 1, "x: True is not of type int"),
        ("x: int = None", 1, "x: None is not of type int"),
        ("x: bool = 1", 1, "x: 1 is not of type bool; write a value such as True."),
        (
            "x: list[int] = [1, '2']",
            1,
            "x: [1, '2'] is not of type list[int]; write a value such as [7].",
        ),
        ("x: list[int] = (1, 2)", 1, "x: (1, 2) is not of type list[int]"),
        ("x: dict[str, float] = {'a': 'b'}", 1, "write a value such as {'text': 0.5}."),
        (
            "x: Path = 'data'",
            1,
            "x: 'data' is not of type Path; write a value such as Path('data/orders.csv').",
        ),
        ("x: Literal['a', 1] = 'b'", 1, "write a value such as 'a' or 1."),
        ("x: int | None = 'a'", 1, "write a value such as 7 or None."),
        (
            "a = 1\nx: flaot = 1.0",
            2,
            "x: 'flaot' is not in the types of a contract; known: Decimal, Fresh, Goal, In, ",
        ),
        ("x: flaot = 1.0", 1, "Did you mean 'float'?"),
        ("x: list[Model] = []", 1, "x: 'Model' is not in the types of a contract"),
        ("x: 3 = 3", 1, "x: '3' is not in the types of a contract"),
        ("x: frozenset[int] = {1}", 1, "x: 'frozenset[int]' is not in the types"),
        ("x = 1j", 1, "x: 'complex' is not in the types of a contract"),
        ("x = None", 1, "annotate it, as in `x: int | None = None`"),
        ("x: In['flights'] = 'flights'", 1, "x: `In['flights']` is not a type here"),
        ("x: In | str = None", 1, "x: `In` is not a type here"),
        ("x: list[In | None] = []", 1, "x: `In` is not a type here"),
        ("x: list[int, str] = []", 1, "x: `list[int, str]` is not a type here"),
        ("x: Literal[y] = 1", 1, "`Literal[y]` is not a type here"),
        (
            "recall: Goal = '0.6'",
            1,
            """recall: '0.6' is not a goal; write a comparison such as ">= 0.60".""",
        ),
        ("recall: Goal = '=> 0.6'", 1, "is not a goal"),
        (
            "x: In = 'my flights'",
            1,
            (
                "x: 'my flights' does not name a dataset; use lower-case letters, digits, '-', "
                "'_' and '.', and @version to pin one."
            ),
        ),
        ("x: In = 'Flights'", 1, "use lower-case letters"),
        (
            "x: Out[Model] = 'a/b'",
            1,
            "x: 'a/b' does not name a model; use letters, digits, '-', '_' and '.'.",
        ),
        (
            "x: Out = 'flights@raw'",
            1,
            (
                "x: 'flights@raw' does not name a dataset; use lower-case letters, digits, '-', "
                "'_' and '.'."
            ),
        ),
        ("x: In = ''", 1, "x: '' does not name a dataset"),
        (
            "token: Secret = 'hunter2'",
            1,
            (
                "token: what was given does not name a secret; write the name of an environment "
                "variable, such as API_TOKEN."
            ),
        ),
        ("a = 1\n\na: int = 2", 3, "a is declared in line 1 already; remove one of the two."),
        (
            "a = 1\nprint(a)",
            2,
            (
                "only imports and lines such as `months: list[int] = [1, 2]` belong in the "
                "contract cell"
            ),
        ),
        ("a = 1\nif a:\n  b = 2", 2, "only imports and lines such as"),
        ("a, b = 1, 2", 1, "only imports and lines such as"),
        ("a = 1\na += 1", 2, "only imports and lines such as"),
        ("a: int = = 1", 1, "invalid syntax: `a: int = = 1`; correct it."),
        ("a = 1\nb = (1,", 2, "was never closed"),
        ("%load_ext scalai\na = 1", 1, "invalid syntax"),
    ],
)
def test_what_a_contract_may_not_say(tmp_path, contract, line, says):
    path = notebook(tmp_path / "03_features.ipynb", "x = 1")
    cells = json.loads(path.read_text())
    cells["cells"][1]["source"] = contract.removeprefix("\n")
    path.write_text(json.dumps(cells))
    with pytest.raises(StepError) as e:
        Step.load(path)
    assert str(e.value).startswith(f"{path}:cell 2 line {line}: ") and says in str(e.value)
    assert "hunter2" not in str(e.value)


def test_a_notebook_has_one_contract_cell(tmp_path, load):
    with pytest.raises(StepError, match="has no contract cell; cell 2 looks like one; tag it"):
        load("x = 1", tags=())
    path = notebook(tmp_path / "a.ipynb", "x = 1", "y = 1")
    cells = json.loads(path.read_text())
    cells["cells"][2]["metadata"]["tags"] = ["parameters"]
    path.write_text(json.dumps(cells))
    with pytest.raises(
        StepError, match="a.ipynb:cell 3 line 1: is a second contract cell after cell 2; keep one"
    ):
        Step.load(path)
    assert load("").parameters == {}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no such notebook"),
        ("{", "cannot be read as a notebook"),
        ("[]", "has no cells"),
        ('{"worksheets": []}', "has no cells; convert it with: jupyter nbconvert"),
    ],
)
def test_what_is_not_a_notebook(tmp_path, content, says):
    path = tmp_path / "x.ipynb"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StepError, match=says):
        Step.load(path)
    with pytest.raises(StepError, match="cannot be read as a notebook"):
        Step.load(tmp_path)


@pytest.mark.parametrize(
    ("cell", "line", "says"),
    [
        ("x = 1\ny = = 2", 2, "invalid syntax: `y = = 2`"),
        ("def f(:\n  pass", 1, "invalid syntax"),
        ("x = 1\nreturn x", 2, "'return' outside function"),
        ("%matplotlib inline\nx = = 1", 2, "invalid syntax"),
        ("x = '", 1, "unterminated string"),
        ("if x:\n", 1, "expected an indented block"),
    ],
)
def test_a_syntax_error_in_any_cell_names_the_cell(load, cell, line, says):
    with pytest.raises(StepError) as e:
        load("a = 1", "b = 2", cell)
    assert f"03_features.ipynb:cell 4 line {line}: {says}" in str(e.value)


@pytest.mark.parametrize(
    "cell",
    [
        "%matplotlib inline",
        "!pip list",
        "files = !ls",
        "x = %timeit -o 1",
        "len?",
        "?len",
        "%%bash\nif [ 1 ]; then echo; fi",
        "%%time\nimport scalai_nb as sn\nsn.connect()",
        "!pip install \\\n  x",
        "await x",
        "%time\nx = (5\n     % 2)",
        "!!ls",
        "if True:\n    %time 1",
        "'\\d'",
    ],
)
def test_what_ipython_allows_is_allowed(load, cell):
    step = load("a = 1", cell)
    assert step.uses("connect") == ("connect" in cell) and step.code


def test_what_a_notebook_says_of_itself(load):
    step = load(
        "a = 1",
        heading="intro\n\n## Flights `late` ##\n\n> one\n> two\n\n> three",
        kernel="gpu",
        name="03_late-flights.ipynb",
    )
    assert (step.name, step.stem, step.title, step.promise, step.kernel) == (
        "late-flights",
        "03_late-flights",
        "Flights `late`",
        "one two",
        "gpu",
    )
    assert (
        load("a = 1", heading="words", name="2013.ipynb").name == "2013"
        and load("", heading="").title == ""
    )


# What counts as code


def test_prose_comments_layout_and_docstrings_do_not_count(load):
    plain = load("a = 1", "x = 1", 'def f(a):\n    return {"a": a}', "y = 'kept'")
    dressed = load(
        "a = 1  # help",
        "# why\nx  =  (1)\n\n",
        "",
        'def f( a ):  # half\n    "Half of `a`"\n    return { "a" : a }',
        "# only words",
        "y = 'kept'",
        heading="# Other",
    )
    assert plain.code == dressed.code and plain.contract == dressed.contract
    assert load("a = 1", "x = 2", 'def f(a):\n    return {"a": a}').code != plain.code
    assert load("a = 1", '"shown"').code  # a string that a cell ends with is an output


def test_defaults_are_values_and_not_part_of_the_contract(load):
    assert load("a: int = 1").contract == load("a: int = 2  # two").contract == "a: int"
    assert (
        load("import os\na: int = 1").contract
        != load("a: int = 1").contract
        != load("a: float = 1.0").contract
    )


def test_an_injected_cell_is_not_the_notebooks_own(tmp_path):
    path = notebook(tmp_path / "a.ipynb", "x = 1", "x = 2")
    cells = json.loads(path.read_text())
    cells["cells"][2]["metadata"]["tags"] = ["injected-parameters"]
    path.write_text(json.dumps(cells))
    assert Step.load(path).code == ""


# Values


@pytest.mark.parametrize(
    ("type", "text", "value"),
    [
        ("str", "007", "007"),
        ("str", "", ""),
        ("str", "None", "None"),
        ("str", "'q'", "'q'"),
        ("int", "-7", -7),
        ("int", "1_000", 1000),
        ("float", "1", 1.0),
        ("float", "1e-3", 0.001),
        ("bool", "true", True),
        ("bool", "False", False),
        ("list[int]", "1,2", [1, 2]),
        ("list[str]", '["UA", "AA"]', ["UA", "AA"]),
        ("list", "[1, 'a', None]", [1, "a", None]),
        ("dict[str, float]", "{'a': 1}", {"a": 1.0}),
        ("dict", '{"a": true}', {"a": True}),
        ("int | None", "None", None),
        ("int | None", "null", None),
        ("str | None", "None", None),
        ("str | None", "x", "x"),
        ("Optional[int]", "3", 3),
        ("Annotated[int, 'n']", "3", 3),
        ("Literal['a', 1]", "a", "a"),
        ("Literal['a', 1]", "1", 1),
        ("int | str", "007", "007"),
        ("Path", "a b", Path("a b")),
        ("list[Path]", "['a']", [Path("a")]),
        ("datetime", "2013-01-31", datetime(2013, 1, 31)),
        ("datetime", "2013-01-31T06:30", datetime(2013, 1, 31, 6, 30)),
        ("date", "2013-01-31", date(2013, 1, 31)),
        ("In", "flights@v1.0", "flights@v1.0"),
        ("In[Model]", "Late@champion", "Late@champion"),
        ("Out", "f", "f"),
        ("Goal", "<=200", Goal("<=200")),
        ("Secret", "TOKEN_2", Secret("TOKEN_2")),
        ("Literal[-1]", "-1", -1),
    ],
)
def test_texts_of_a_command_line(type, text, value):
    parsed = Parameter("x", type).parse(text)
    assert parsed == value and parsed.__class__ is value.__class__


@pytest.mark.parametrize(
    ("type", "text", "says"),
    [
        (
            "int",
            "007",
            (
                "x: '007' is not of type int; write a value such as 7. A number has no leading "
                "zeros; declare str to keep them."
            ),
        ),
        ("int", "7.0", "'7.0' is not of type int"),
        ("int", "", "'' is not of type int"),
        ("int", "seven", "such as 7."),
        ("int", "true", "not of type int"),
        ("float", "1" + "0" * 400, "not of type float"),
        ("bool", "yes", "such as True."),
        ("list[int]", "1", "such as [7]."),
        ("list[int]", "[1, 2.5]", "such as [7]."),
        ("dict[str, int]", "a=1", "such as {'text': 7}."),
        ("Literal['a', 'b']", "c", "such as 'a' or 'b'."),
        ("datetime", "soon", "such as datetime.fromisoformat('2013-01-31T06:00:00')."),
        ("Goal", "0.6", """x: '0.6' is not a goal; write a comparison such as ">= 0.60"."""),
        ("Goal", ">= nan", "is not a goal"),
        ("Goal", ">= 0.6.1", "not a goal"),
        ("In", "a b", "'a b' does not name a dataset"),
        ("Out", "f@v", "does not name a dataset"),
        ("int", "(" * 9999, "is not of type int"),
        ("list", "[" * 9999, "is not of type list"),
    ],
)
def test_texts_that_are_refused(type, text, says):
    with pytest.raises(ParameterError) as e:
        Parameter("x", type).parse(text)
    assert says in str(e.value)


def test_goal():
    assert [Goal(f"{op} 1").met(x) for op in (">=", ">", "<=", "<", "==") for x in (0, 1, 2)] == [
        False,
        True,
        True,
        False,
        False,
        True,
        True,
        True,
        False,
        True,
        False,
        False,
        False,
        True,
        False,
    ]
    assert not any(Goal(f"{op} 1").met(float("nan")) for op in (">=", ">", "<=", "<", "=="))
    assert (
        Goal("<-1e3").op,
        Goal("<-1e3").threshold,
        str(Goal(">= .5")),
        json.dumps(Goal("> 1")),
    ) == ("<", -1000.0, ">= .5", '"> 1"')
    with pytest.raises(ParameterError):
        Goal(0.6)


def test_a_secret_is_named_and_never_shown(monkeypatch, load):
    monkeypatch.setenv("API_TOKEN", "hunter2")
    step = load('from scalai_nb.pipeline import Secret\ntoken: Secret = "OLD"').bind(
        {"token": "API_TOKEN"}
    )
    assert (
        Secret(step.values["token"]).value == "hunter2"
        and "hunter2" not in f"{step!r}{step.injected()}"
    )
    for line in ('token = Secret("OLD")', 'token: Secret = Secret("OLD")'):
        step = load(f"from scalai_nb.pipeline import Secret\n{line}")
        assert step.secrets == {"token": "OLD"}
        cell = {}
        exec(step.bind({"token": "API_TOKEN"}).injected(), cell)
        assert cell["token"].value == "hunter2"
    with pytest.raises(ParameterError) as e:
        step.bind({"token": "hunter2"})
    assert "hunter2" not in str(e.value) and e.value.__cause__ is None
    with pytest.raises(ParameterError) as e:
        step.bind({"token": 5})


VALUES = {
    "int": st.integers(),
    "float": st.floats(allow_nan=False),
    "str": st.text(),
    "bool": st.booleans(),
    "date": st.dates(),
    "datetime": st.datetimes().map(lambda d: d.replace(fold=0)),
    "Path": st.text("abc/ .'\"\\", min_size=1).map(Path),
    "int | None": st.none() | st.integers(),
    "Literal['a', 1]": st.sampled_from(["a", 1]),
}
nested = st.sampled_from(sorted(VALUES)).flatmap(
    lambda t: st.one_of(
        st.tuples(st.just(t), VALUES[t]),
        st.tuples(st.just(f"list[{t}]"), st.lists(VALUES[t], max_size=3)),
        st.tuples(
            st.just(f"dict[str, list[{t}]]"),
            st.dictionaries(st.text(max_size=3), st.lists(VALUES[t], max_size=2), max_size=2),
        ),
    )
)


@settings(deadline=None)
@given(nested)
def test_a_literal_is_read_injected_and_read_again(tmp_path_factory, case):
    type, value = case
    path = notebook(tmp_path_factory.mktemp("n") / "a.ipynb", "x = 0")
    cells = json.loads(path.read_text())
    cells["cells"][1]["source"] = f"x: {type} = {source(value)}"
    path.write_text(json.dumps(cells))
    step = Step.load(path)
    assert step.values["x"] == value and repr(step.values["x"]) == repr(value)
    exec(
        step.bind({"x": value} if not isinstance(value, str) or type == "str" else {}).injected()
        or f"x = {value!r}",
        space := {},
    )
    assert space["x"] == value


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers() | st.booleans(), max_size=3),
    st.lists(st.floats(allow_nan=False)),
)
def test_python_and_json_texts_mean_the_same(mapping, numbers):
    assert (
        Parameter("x", "dict").parse(json.dumps(mapping))
        == Parameter("x", "dict").parse(repr(mapping))
        == mapping
    )
    finite = [x for x in numbers if abs(x) < 1e300]
    assert Parameter("x", "list[float]").parse(json.dumps(finite)) == finite


def test_binding(load):
    step = load(
        "a: int = 1\nb: list[int] = [1]\nc: Path\nd: datetime = datetime(2013, 1, 1)\ne: str = 'e'"
    )
    bound = step.bind({"a": "2", "b": [3], "c": "x y"}).bind({"d": "2014-01-01"})
    assert (
        bound.values == {"a": 2, "b": [3], "c": Path("x y"), "d": datetime(2014, 1, 1), "e": "e"}
        and step.overrides == {}
        and step.injected() == ""
    )
    exec(bound.injected(), space := {"datetime": "a name of the notebook's own"})
    assert (
        {k: space[k] for k in "abcd"} == bound.overrides
        and "e =" not in bound.injected()
        and space["datetime"] == "a name of the notebook's own"
    )
    with pytest.raises(
        ParameterError,
        match="'aa' is not in the parameters of features; known: a, b, c, d, e. Did you mean 'a'",
    ):
        step.bind({"aa": 1})
    with pytest.raises(ParameterError, match=r"features\.a: 'x' is not of type int"):
        step.bind({"a": "x"})
    with pytest.raises(ParameterError, match=r"features\.b: \(1, 2\) is not of type"):
        step.bind({"b": (1, 2)})
    assert (
        load("a: In = 'x'").bind({"a": "y@v1"}).reads == {"a": ("dataset", "y", "v1")}
        and load("a: In").reads == {}
    )


def test_assignments():
    assert parse_assignments(["a.b=1", "a.c=x=y\n", "late-flights.b="]) == {
        "a": {"b": "1", "c": "x=y\n"},
        "late-flights": {"b": ""},
    }
    with pytest.raises(ParameterError, match=r"^a\.b is given twice; keep one of the two\.$"):
        parse_assignments(["a.b=1", "a.b=1"])
    for word in ("b=hunter2", "a.b", "=", "a.=1", ".b=1", "a.1=2", "a b.c=1", ""):
        with pytest.raises(ParameterError, match="does not begin a step.name=value") as e:
            parse_assignments([word])
        assert "hunter2" not in str(e.value)


# The project's own code


@pytest.fixture
def project(tmp_path):
    "A project with its own modules and a small scalai_nb, which shadows the real one"

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(textwrap.dedent(text))

    write(
        {
            "settings.ini": "[laptop]\n",
            "scalai_nb/__init__.py": (
                "from scalai_nb.environment import environment\n"
                "_WHERE = {'describe.drift': ['Drift', 'drift'], 'describe.summary': "
                "['summarize'], 'models.package.package': ['Model']}"
            ),
            "scalai_nb/environment.py": "import helpers",
            "scalai_nb/errors.py": "x = 1",
            "scalai_nb/describe/__init__.py": '"Describing"',
            "scalai_nb/describe/drift.py": (
                '"Drift"\n'
                "from ..errors import x\n"
                "from .summary import summarize\n"
                "def drift(a):\n"
                '    "doc"\n'
                "    return summarize(a)  # one"
            ),
            "scalai_nb/describe/summary.py": (
                "def summarize(a):\n"
                "    from scalai_nb.compute import reduce as r\n"
                "    return r.reduce(a)"
            ),
            "scalai_nb/compute/reduce.py": "reduce = sum",
            "scalai_nb/models/package/package.py": (
                "import scalai_nb as sn\nclass Model:\n    def check(self): return sn.drift"
            ),
            "scalai_nb/pipeline/__init__.py": (
                "_WHERE = {'models.package.package': ['Model'], 'pipeline.io': ['read']}"
            ),
            "scalai_nb/pipeline/io.py": "from scalai_nb import summarize",
            "helpers.py": "import carriers.names",
            "src/carriers/__init__.py": "from . import codes",
            "src/carriers/codes.py": "x = 1",
            "src/carriers/names.py": "from .codes import *\nfrom ..nowhere import y",
            "nbs/p/beside.py": "import json",
        }
    )
    step = lambda *code, contract="": Step.load(
        notebook(tmp_path / "nbs/p/01_a.ipynb", contract, *code)
    )
    return step, write


DRIFT = ["scalai_nb.compute.reduce", "scalai_nb.describe.drift", "scalai_nb.describe.summary"]


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import scalai_nb as sn\nsn.drift(1)", DRIFT),
        ("from scalai_nb import drift", DRIFT),
        ("import scalai_nb\nscalai_nb.drift(1)", DRIFT),
        ("from scalai_nb import drift as d\nd(1)", DRIFT),
        ("def f():\n    from scalai_nb.describe import drift\n    return drift.drift", DRIFT),
        ("import scalai_nb.describe.drift as d", DRIFT),
        ("import scalai_nb as sn\nsn.describe.drift.drift(1)", DRIFT),
        ("import scalai_nb as sn\nsn.summarize(1)", [DRIFT[0], DRIFT[2]]),
        ("import scalai_nb as sn\nsn.environment()\nsn.__version__", []),
        ("import scalai_nb as sn", []),
        ("from scalai_nb import *", [*DRIFT, "scalai_nb.models.package.package"]),
        ("from scalai_nb.pipeline import read", []),
        ("from scalai_nb.pipeline import Model", [*DRIFT, "scalai_nb.models.package.package"]),
        ("import numpy as np, json\nnp.drift(json.x)", []),
        ("import helpers", ["carriers", "carriers.codes", "carriers.names", "helpers"]),
        ("import carriers", ["carriers", "carriers.codes"]),
        ("import beside", ["beside"]),
        ("%%time\nimport beside", ["beside"]),
        ("drift = 1\ndrift.drift", []),
        ("import xgboost.missing", []),
    ],
)
def test_own_modules_are_followed_by_path(project, code, modules):
    step, _ = project
    assert list(step(code).imports.modules) == modules
    assert not {"helpers", "beside", "carriers"} & sys.modules.keys()


def test_the_contract_cell_imports_too(project):
    step, _ = project
    assert (
        "scalai_nb.models.package.package"
        in step(
            contract="from scalai_nb.pipeline import In, Model\nm: In[Model] = 'm'"
        ).imports.modules
    )
    cells = step("import scalai_nb as sn", "def f():\n    return sn.drift")
    assert list(cells.imports.modules) == DRIFT


def test_digests_follow_code_and_nothing_else(project):
    step, write = project
    before = step("from scalai_nb import drift").imports.modules
    write(
        {
            "scalai_nb/describe/drift.py": (
                '"Other words"\n'
                "from ..errors import x\n"
                "from .summary import summarize\n"
                "\n"
                "def drift( a ):\n"
                "    return summarize(a)\n"
            )
        }
    )
    assert step("from scalai_nb import drift").imports.modules == before
    write(
        {
            "scalai_nb/errors.py": "x = 2",
            "scalai_nb/pipeline/io.py": "y = 2",
            "scalai_nb/environment.py": "z = 2",
        }
    )
    assert step("from scalai_nb import drift").imports.modules == before
    write(
        {
            "scalai_nb/describe/summary.py": (
                "def summarize(a):\n"
                "    from scalai_nb.compute import reduce as r\n"
                "    return r.reduce(a) + 1"
            )
        }
    )
    after = step("from scalai_nb import drift").imports.modules
    assert {m for m in after if after[m] != before[m]} == {"scalai_nb.describe.summary"}
    write({"scalai_nb/describe/summary.py": "def summarize(a:"})
    with pytest.raises(StepError, match=r"summary\.py:1: .*correct it"):
        step("from scalai_nb import drift").imports.modules  # noqa: B018


def test_importing_is_light():
    heavy = (
        "{'numpy', 'pandas', 'xarray', 'dask', 'IPython', 'papermill', 'nbformat', 'rich', "
        "'jupyter_client', 'mlflow'}"
    )
    code = (
        "import sys, scalai_nb.pipeline as p, scalai_nb.pipeline.step, "
        f"scalai_nb.pipeline.plan; p.In, p.Goal; assert not {heavy} & sys.modules.keys(), "
        f"{heavy} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_lazy_package_names_what_exists():
    import scalai_nb.pipeline as p

    assert p.In.__name__ == "In" and {"Model", "checkpoint", "read", "write"} <= set(dir(p))
    with pytest.raises(AttributeError, match="has no attribute 'raed'"):
        p.raed  # noqa: B018
