"""What people write into a contract cell: what it means, how it is injected, what is refused"""

import subprocess
import sys
import time
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from scalai_nb.errors import ParameterError, StepError
from scalai_nb.pipeline.reading.parameter import Parameter, source
from scalai_nb.pipeline.staleness import key
from scalai_nb.pipeline.step import Step
from test_step import VALUES
from toy import Project, notebook, statuses

MODE = """from enum import Enum
class Mode(Enum):
    "How it is done"
    FAST = "fast"
    EXACT = "exact"
mode: Mode = Mode.FAST"""
LAUGHS = "a = [1] * 10\nb = [a, a, a, a]\n" + "".join(
    f"{new} = [{old}, {old}, {old}, {old}, {old}, {old}, {old}]\n"
    for old, new in ("bc", "cd", "de", "ef", "fg", "gh")
)


@pytest.fixture
def load(tmp_path):
    "Load a notebook with this contract"
    return lambda contract, *cells: Step.load(notebook(tmp_path / "01_a.ipynb", contract, *cells))


@pytest.mark.parametrize(
    ("written", "type", "value"),
    [
        ("60 * 60", "int", 3600),
        ("1e3", "float", 1000.0),
        ("-1", "int", -1),
        ("2 ** 10", "int", 1024),
        ("1 << 20", "int", 1_048_576),
        ("-2 ** -1", "float", -0.5),
        ("7 // 2 + 7 % 2", "int", 4),
        ("-(1 + 2)", "int", -3),
        ("1 / 4", "float", 0.25),
        ("'late-' + 'flight'", "str", "late-flight"),
        ("'-' * 3", "str", "---"),
        ("[0] * 2 + [1]", "list", [0, 0, 1]),
        ("Path('data') / 'x.csv'", "Path", Path("data/x.csv")),
        ("pathlib.Path('data', 'b') / 'x.csv'", "Path", Path("data/b/x.csv")),
        ("Decimal('0.1') * 3", "Decimal", Decimal("0.3")),
        ("1, 2", "tuple", (1, 2)),
        ("{3, 1}", "set", {1, 3}),
        ("set()", "set", set()),
        ("[60 * 60, -1]", "list", [3600, -1]),
        ("date(2013, 1, 3 * 4)", "date", date(2013, 1, 12)),
        ("f'run'", "str", "run"),
    ],
)
def test_what_is_written_is_what_python_makes_of_it(load, written, type, value):
    step = load(f"x = {written}")
    assert step.values == {"x": value} and step.parameters["x"].type == type
    found = {"Path": Path, "Decimal": Decimal, "date": date, "pathlib": __import__("pathlib")}
    exec(f"x = {written}", found)
    assert found["x"] == value


def test_constants_above_may_be_named_and_are_followed(load):
    step = load(
        "days = 7\nroot = Path('data')\nhours: int = days * 24\n"
        "names = [f'{root}/{days}.csv', root / 'x.csv']"
    )
    assert step.values["hours"] == 168
    assert step.values["names"] == ["data/7.csv", Path("data/x.csv")]
    assert step.injected() == ""
    bound = step.bind({"days": "1"})
    assert bound.values["hours"] == 24 and bound.values["names"][0] == "data/1.csv"
    exec(bound.injected(), found := {})
    assert (found["days"], found["hours"]) == (1, 24)
    assert key(bound, {}).parts["parameters"]["hours"] == "24"
    chosen = bound.bind({"hours": "5"}).bind({"days": 2})
    assert chosen.values["hours"] == 5, "what is passed is not computed"
    with pytest.raises(StepError, match="line 1: a: `b` is not a constant"):
        load("a = b\nb = 1")


def test_a_value_that_does_not_exist_for_what_is_passed_is_refused(load):
    step = load("n = 2\nshare = 1 / n")
    with pytest.raises(ParameterError, match=r"^a\.share: `1 / n` is not a constant"):
        step.bind({"n": "0"})


def test_an_enum_of_the_cell(load):
    step = load(MODE, "print(mode.value)")
    mode = step.values["mode"]
    assert (mode.name, mode.value, source(mode)) == ("FAST", "fast", "Mode.FAST")
    for text in ("EXACT", "Mode.EXACT", "exact"):
        assert step.bind({"mode": text}).injected() == "mode = Mode.EXACT"
    exec(MODE, space := {})
    assert step.bind({"mode": space["Mode"].EXACT}).values["mode"].name == "EXACT"
    with pytest.raises(ParameterError, match=r"write a value such as Mode.FAST or Mode.EXACT"):
        step.bind({"mode": "slow"})
    several = load(MODE + "\nall: list[Mode] = [Mode.FAST, Mode.EXACT]\none: Mode | None = None")
    assert several.bind({"one": "EXACT"}).injected() == "one = Mode.EXACT"
    assert [m.name for m in several.values["all"]] == ["FAST", "EXACT"]
    other = MODE.replace('"exact"', '"precise"')
    assert load(other).contract != step.contract, "members count"


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ("    def a(self): ...", "only an Enum of members such as FAST"),
        ("    A = open('x')", "is not a constant"),
        ("    pass", "only an Enum"),
    ],
)
def test_a_class_that_is_more_than_names_is_refused(load, members, says):
    with pytest.raises(StepError, match=says):
        load(f"class A(Enum):\n{members}")
    with pytest.raises(StepError, match="only an Enum"):
        load("class A(dict):\n    x = 1")


def test_an_optional_input(load):
    step = load(
        "from scalai_nb.pipeline import In, File\na: In | None = None\nb: Optional[In[File]] = None"
    )
    assert (step.reads, step.parameters["a"].kind, step.parameters["b"].referent) == (
        {},
        "in",
        "file",
    )
    bound = step.bind({"a": "flights@v1", "b": "x.csv"})
    assert {n: (r.kind, str(r)) for n, r in bound.reads.items()} == {
        "a": ("dataset", "flights@v1"),
        "b": ("file", "x.csv"),
    }
    assert bound.bind({"a": "None"}).reads.keys() == {"b"}
    assert load("s: Secret | None = None\nf: Fresh | None = None").secrets == {}


def test_a_step_runs_without_its_optional_input_and_with_it(tmp_path):
    project = Project(tmp_path)
    project.step(
        "01_write",
        "from scalai_nb.pipeline import File, Out\nout: Out[File] = 'x.txt'",
        "from pathlib import Path",
        "Path(out).write_text('seven')",
    )
    project.step(
        "02_read",
        f"from scalai_nb.pipeline import File, In\n{MODE}\ngiven: In[File] | None = None",
        "print(mode.value, open(given).read() if given else 'nothing')",
    )
    first = project.said("run", "toy")
    assert first.returncode == 0, first.stderr
    assert "fast nothing" in project.said("show", "latest", "read").stdout
    plan = project.said("plan", "toy", "--json", "-p", "read.given=x.txt")
    assert '"write",' in plan.stdout.split('"steps"')[0], "an edge"
    second = project.said("run", "toy", "-p", "read.given=x.txt", "-p", "read.mode=EXACT")
    assert second.returncode == 0, second.stderr
    assert "exact seven" in project.said("show", "latest", "read").stdout
    assert statuses(project.show())["write"][0] == "cached"


@pytest.mark.parametrize(
    ("contract", "instead"),
    [
        ("x = datetime.now()", "write a day, say date(2013, 1, 31), and pass another with -p"),
        ("x: date = date.today()", "pass another with -p"),
        (
            "import os\nx = os.environ['KEY']",
            'name the variable, say `token: Secret = "API_TOKEN"`',
        ),
        ("x = os.getenv('KEY')", "name the variable"),
        ("y = 'a'\nx = len(y)", "x: `len(y)` is not a constant; write the value out"),
        ("x = f'{open(1)}'", "is not a constant"),
        ("x = f'{1:1000000000}'", "is not a constant"),
        ("x = '%1000000000d' % 1", "is not a constant"),
        ("x = 1 / 0", "is not a constant"),
        ("x = 1 + 'a'", "is not a constant"),
        ("x = Path.home()", "is not a constant"),
        ("x = Mode.FAST", "is not a constant"),
        ("x = lambda: 1", "is not a constant"),
        ("x = {[]}", "is not a constant"),
        ("x = 9**9**9", "x: `9 ** 9 ** 9` is too large; write a smaller one"),
        ("x = 'a' * 10**9", "is too large"),
        ("x = 10**9 * [1]", "is too large"),
        ("x = 1 << 10**9", "is too large"),
        ("x = [[0] * 1000] * 1000", "is too large"),
        ("x = Decimal(9) ** 10**9", "is not a constant"),
        ("x = 1e308 ** 2", "is too large"),
        (LAUGHS, "is too large"),
    ],
)
def test_what_must_be_executed_or_is_too_large_is_refused_in_milliseconds(load, contract, instead):
    start = time.perf_counter()
    with pytest.raises(StepError) as e:
        load(contract)
    assert instead in str(e.value) and "cell 2 line" in str(e.value)
    assert time.perf_counter() - start < 0.25


SCALARS = VALUES | {"Decimal": st.decimals(allow_nan=False)}
CASES = st.sampled_from(sorted(SCALARS)).flatmap(
    lambda t: st.one_of(
        st.tuples(st.just(t), SCALARS[t]),
        st.tuples(st.just(f"list[{t}]"), st.lists(SCALARS[t], max_size=3)),
        st.tuples(st.just(f"set[{t}]"), st.sets(SCALARS[t], max_size=3)),
        st.tuples(st.just(f"tuple[{t}, ...]"), st.lists(SCALARS[t], max_size=3).map(tuple)),
        st.tuples(st.just(f"tuple[{t}, str]"), st.tuples(SCALARS[t], st.text(max_size=3))),
        st.tuples(
            st.just(f"dict[str, tuple[{t}]]"),
            st.dictionaries(st.text(max_size=3), st.tuples(SCALARS[t]), max_size=2),
        ),
        st.tuples(st.just(f"list[{t}] | None"), st.none() | st.lists(SCALARS[t], max_size=2)),
    )
)


def spelt(value) -> str:
    "A value as one types it behind -p"
    return str(value) if isinstance(value, str | Path | date | Decimal) else source(value)


@settings(deadline=None)
@given(CASES)
def test_any_value_is_written_read_injected_and_typed(tmp_path_factory, case):
    type, value = case
    path = tmp_path_factory.mktemp("n") / "01_a.ipynb"
    step = Step.load(notebook(path, f"x: {type} = {source(value)}\ny: {type}"))
    assert step.values["x"] == value and repr(source(step.values["x"])) == repr(source(value))
    parsed = Parameter("x", type).parse(spelt(value))
    assert parsed == value and parsed.__class__ is value.__class__
    exec(step.bind({"y": spelt(value)}).injected(), space := {})
    assert space["y"] == value


@pytest.mark.parametrize("text", ["2013-10-11", "60*60", "9**9**9", "x", "[1]*3"])
def test_a_command_line_does_not_compute(text):
    with pytest.raises(ParameterError, match="is not of type int"):
        Parameter("n", "int").parse(text)


def test_a_cell_without_the_tag_is_offered(tmp_path):
    path = notebook(tmp_path / "a.ipynb", None, "import os\nprint(1)", "months = [1, 2]  # to read")
    with pytest.raises(
        StepError, match=r"cell 3 looks like one; tag it `parameters`, or run: scalai adopt"
    ):
        Step.load(path)
    path = notebook(tmp_path / "b.ipynb", None, "import os", "print(1)")
    with pytest.raises(StepError, match="has no contract cell; tag the code cell"):
        Step.load(path)


def test_papermill_injects_what_the_cell_accepts(tmp_path):
    "By papermill's own command line, with our engine"
    path = notebook(
        tmp_path / "a.ipynb", f"hours = 60 * 60\n{MODE}\npair = 1, 2", "print(hours, mode, pair)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            "--engine",
            "scalai",
            "-p",
            "hours",
            "5",
            path,
            tmp_path / "b.ipynb",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "5 Mode.FAST (1, 2)" in (tmp_path / "b.ipynb").read_text()
