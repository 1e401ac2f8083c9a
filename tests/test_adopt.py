"""`scalai adopt`: a stranger's notebook becomes a step, by the real command, and nothing is lost"""

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings, strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from toy import Project

from scalai_nb.errors import StepError
from scalai_nb.start.adoption import Proposal

TRIPS = (
    "import os\nfrom pathlib import Path\n\nimport matplotlib.pyplot as plt\nimport pandas as pd",
    "%matplotlib inline\nDATA = Path('data')\nshortest = 1.5  # miles of a trip that counts\n"
    "week = 7 * 24\ndeep = [[1, 2], [3]]",
    "total = 0\n"
    "trips = pd.read_csv(DATA / 'träger.csv'); long = trips[trips.miles > shortest]\n"
    "for n in long.miles:\n    total += n",
    "long.to_csv('long trips.csv')\nplt.plot(long.miles)\nplt.savefig('trips.png')",
    "print(total, week)",
    "print(len(os.environ['API_TOKEN']), deep)",
)
SECRET = {"API_TOKEN": "a-long-secret-of-ours"}


def stranger(path: Path, *texts: str, **metadata) -> Path:
    "A notebook as one finds it: executed, with a heading, and no tag"
    cells = [new_markdown_cell("# Trips\n\n> One promise")]
    for text in texts:
        shown = [new_output("stream", name="stdout", text="as it was\n")]
        cells.append(new_code_cell(text, execution_count=7, outputs=shown))
    nbformat.write(new_notebook(cells=cells, metadata=metadata), path)
    return path


@pytest.fixture
def there(tmp_path):
    "A folder without settings: `there(*words)` runs scalai in it"
    project = Project(tmp_path)
    (tmp_path / "settings.ini").unlink()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/träger.csv").write_text("miles\n3\n4\n1\n")
    return project


def contract(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (cell,) = (c for c in cells if "parameters" in c["metadata"].get("tags", []))
    return "".join(cell["source"])


def proposed(tmp_path: Path, *texts: str) -> str:
    "The contract cell that is proposed for a notebook of these cells"
    proposal = Proposal.of(stranger(tmp_path / "x.ipynb", *texts))
    return proposal._contract(proposal.whole(proposal.taken))["source"]


def test_a_notebook_is_adopted_planned_run_and_told_another_value(there):
    path = stranger(there.root / "my trips.ipynb", *TRIPS)
    before = json.loads(path.read_text(encoding="utf-8"))
    done = there.said("adopt", path.name, "--yes")
    assert done.returncode == 0, done.stderr
    after = json.loads(path.read_text(encoding="utf-8"))
    assert contract(path) == (
        "from pathlib import Path\nfrom scalai_nb.pipeline import File, In, Out, Secret\n\n"
        "long_trips_csv: Out[File] = 'long trips.csv'  # written by long.to_csv\n"
        "trips_png: Out[File] = 'trips.png'  # written by plt.savefig\n"
        "api_token: Secret = 'API_TOKEN'  # environment variable that holds it\n"
        "DATA = Path('data')\n"
        "shortest: float = 1.5  # miles of a trip that counts\n"
        "week: int = 7 * 24\n"
        "träger_csv: In[File] = DATA / 'träger.csv'  # read by pd.read_csv"
    )
    nbformat.validate(nbformat.from_dict(after))
    kept = {c["id"]: c for c in after["cells"]}
    for cell in before["cells"]:
        now = kept.pop(cell["id"])
        assert [now.get(k) for k in ("outputs", "execution_count", "metadata")] == [
            cell.get(k) for k in ("outputs", "execution_count", "metadata")
        ]
    assert list(kept) == ["contract"], "one cell is new, in front of all code"
    assert [c["cell_type"] for c in after["cells"]][:2] == ["markdown", "code"]
    assert "pd.read_csv(träger_csv); long" in path.read_text(encoding="utf-8")
    plan = there.said("plan", path.name, **SECRET)
    assert plan.returncode == 0 and "never run" in plan.stdout, plan.stderr
    run = there.said("run", path.name, **SECRET)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "7 168" in there.said("show", "latest", "my-trips").stdout
    assert "cached" in there.said("run", path.name, **SECRET).stdout
    told = there.said("run", path.name, "-p", "my-trips.shortest=3.5", **SECRET)
    assert told.returncode == 0, told.stderr
    assert "4 168" in there.said("show", "latest", "my-trips").stdout
    (there.root / "data/träger.csv").write_text("miles\n9\n")
    assert "input data/träger.csv" in there.said("plan", path.name, **SECRET).stdout


def test_without_a_yes_nothing_is_written(there):
    path = stranger(there.root / "trips.ipynb", *TRIPS)
    before = there.files()
    for words in ((), ("--dry-run",), ("--dry-run", "--yes")):
        shown = there.said("adopt", "trips.ipynb", *words)
        assert shown.returncode == 0 and "+week: int = 7 * 24" in shown.stdout, shown.stderr
        assert "-week = 7 * 24" in shown.stdout and "\x1b" not in shown.stdout
        assert shown.stdout.index("contract cell") < shown.stdout.index("--- cell 3")
        assert ("scalai adopt trips.ipynb --yes" in shown.stdout) == (not words)
        assert there.files() == before
    assert path.exists()


def test_in_a_terminal_it_asks_about_what_is_in_doubt(there):
    path = stranger(
        there.root / "trips.ipynb", "months = [1, 2]\nlimit = 3", "print(months, limit)"
    )
    main, side = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "scalai_nb", "adopt", path.name],
        cwd=there.root,
        env={**there.env, "TERM": "xterm"},
        stdin=side,
        stdout=side,
        stderr=side,
    ) as process:
        os.close(side)
        said, answers = "", ["y\n", "y\n"]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                said += os.read(main, 4096).decode()
            except OSError:
                break
            if answers and len(re.findall(r"\[[yY]/[nN]\]: ", said)) == 3 - len(answers):
                os.write(main, answers.pop(0).encode())
        assert process.wait(20) == 0, said
    os.close(main)
    assert "Is months a parameter (it may be data)?" in said and "\x1b[32m" in said
    assert contract(path) == "months: list[int] = [1, 2]\nlimit: int = 3"


def test_several_become_a_pipeline_in_another_folder(there):
    (there.root / "found").mkdir()
    (there.root / "found/in.csv").write_text("a\n1\n")
    stranger(
        there.root / "found/2 read.ipynb",
        "import pandas as pd\nd = pd.read_csv('in.csv')\nd.to_csv('mid.csv')",
    )
    stranger(
        there.root / "found/use.ipynb", "import pandas as pd\nprint(len(pd.read_csv('mid.csv')))"
    )
    (there.root / "found/mid.csv").write_text("a\n")
    names = ["found/2 read.ipynb", "found/use.ipynb"]
    before = [(there.root / n).read_bytes() for n in names]
    done = there.said("adopt", *names, "--to", "pipelines/mine", "--yes")
    assert done.returncode == 0, done.stderr
    assert [(there.root / n).read_bytes() for n in names] == before
    first, second = (there.root / "pipelines/mine" / n for n in ("01_read.ipynb", "02_use.ipynb"))
    assert "in_csv: In[File] = '../../found/in.csv'" in contract(first)
    assert "mid_csv: In[File] = 'mid.csv'" in contract(second), "which the first writes there"
    assert done.stdout.count("run it") == 1 and "scalai run pipelines/mine" in done.stdout
    run = there.said("run", "mine")  # settings.ini, which there was not, names the folder
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(there.said("plan", "pipelines/mine", "--json").stdout)["edges"] == [
        ["read", "use", "mid.csv"]
    ]


@pytest.mark.parametrize(
    ("texts", "lines"),
    [
        (["n = 3\nprint(n)"], ["n: int = 3"]),
        (["n = 3\nn = 4"], []),
        (["n = 3\nn += 1"], []),
        (["print(n)", "n = 3"], []),
        (["def f(n): return n", "n = 3"], []),
        (["for i in range(3): n = 3"], []),
        (["rows = []", "rows.append(1)"], []),
        (["now = time.time()\nnone = None"], []),
        (["_n = 3"], []),
        (["t = (\n  'a'\n  'b'\n)"], ["t: str = ('a'"]),
        (["from math import *", "e = 3"], []),
        (["%pylab", "e = 3"], []),
        (["!ls $n", "n = 3"], []),
        (["a = 1; b = 2"], []),
        (["rate: float = 0.5  # of learning"], ["rate: float = 0.5  # of learning"]),
        (["rate: np.ndarray = 3"], []),
        (["import datetime as dt\nday = dt.date(2013, 1, 2)"], ["day = dt.date(2013, 1, 2)"]),
        (
            ["HOURS = 2", "SECONDS = HOURS * 3600"],
            ["HOURS: int = 2", "SECONDS: int = HOURS * 3600"],
        ),
        (["SIZES = (1, 2)", "sizes = (1, 2)"], ["SIZES: tuple[int, ...] = (1, 2)"]),
        (['sql = """\nselect\n"""'], []),
        (["%%bash\nn = 3"], []),
        (["%%time\nn = 3  # é"], ["n: int = 3  # é"]),
        (["é = 'é'; x = open('gone.txt')"], []),
        (["if rare: df.to_csv('a.csv')"], []),
        (["def f(): plt.savefig('a.png')"], []),
        (["df.to_csv('a.csv')", "os.remove('a.csv')"], []),
        (["plt.savefig('a')", "np.save('b', 1)"], []),
        (["np.save('b.npy', 1)"], ["b_npy: Out[File] = 'b.npy'  # written by np.save"]),
        (
            ["with open('a.txt', 'w') as f: f.write('x')"],
            ["a_txt: Out[File] = 'a.txt'  # written by open"],
        ),
        (["open('a.txt', 'a')"], []),
        (["gzip.open('there.csv')"], ["there_csv: In[File] = 'there.csv'  # read by gzip.open"]),
        (["from x import *", "P = 'there.csv'", "open(P)"], []),
        (["open('there.csv')", "print(Out[1])"], []),
        (["P = 'a.txt'", "open(P, 'w').write('x')"], ["P: Out[File] = 'a.txt'  # written by open"]),
        (
            ["P = 'there.csv'", "pd.read_csv(P, sep=';')"],
            ["P: In[File] = 'there.csv'  # read by pd.read_csv"],
        ),
        (
            ["pd.read_csv(sep=';', filepath_or_buffer='there.csv')"],
            ["there_csv: In[File] = 'there.csv'  # read by pd.read_csv"],
        ),
        (["(x / 'b').write_text('a.txt')", "DATA = Path('d')", "DATA.write_text('a.txt')"], []),
        (["json.dump('text', f)", "df.to_csv('a\\nb.csv')", "open('.')"], []),
        (
            ["Path('a.txt').write_text('x')"],
            ["a_txt: Out[File] = 'a.txt'  # written by Path.write_text"],
        ),
        (["pd.read_csv('https://x.org/a.csv')"], []),
        (["df = pd.read_csv('there.csv')\ndf.to_csv('there.csv')"], []),
        (
            ["there_csv = pd.read_csv('there.csv')"],
            ["there_csv_file: In[File] = 'there.csv'  # read by pd.read_csv"],
        ),
        (
            ["SOURCE = 'there.csv'  # mine", "pd.read_csv(SOURCE)"],
            ["SOURCE: In[File] = 'there.csv'  # mine"],
        ),
        (["joblib.dump(1, 'm.pkl')"], ["m_pkl: Out[File] = 'm.pkl'  # written by joblib.dump"]),
        (["os.environ['API_KEY'] = 'x'\nos.environ['API_KEY']"], []),
        (["os.getenv('HOME')"], []),
        (
            ["os.getenv('DB_PASSWORD', '')"],
            ["db_password: Secret = 'DB_PASSWORD'  # environment variable that holds it"],
        ),
    ],
)
def test_what_is_found(tmp_path, texts, lines):
    (tmp_path / "there.csv").write_text("a\n")
    found = proposed(tmp_path, *texts).split("\n")
    assert [line for line in found if " = " in line and line[0] != "#"] == lines


LINES = st.sampled_from(
    r"""
    a = 1 ; b = 2 ** 3  # of it ; c = [1, 2] ; C = (1, 2) ; d = {'x': 1.5} ; a = 3 ; e = 5
    b = a * 2 ; a += 1 ; c.append(4) ; c[0] = 9 ; del b ; for a in range(3): pass ; (b := 9)
    if True: b = 4 ; from math import * ; import math as a ; x = e ; x = a + 1
    print(str(a)[:4]) ; g = b ; print(C, d) ; def f(v): return v + a ; def a(v): return b
    def f(b): return b + 1 ; print(f(1)) ; m, n = 1, 2
    k: int = b ; k: int = 6 ; class b: a = 3 ; w = b if a else 2 ; [a for a in C]
    print(max(1, 2)) ; max = 3 ; s = 'in.txt' ; s = 'out.txt'
    t = ('é'\n  'è')  # two ; r = Path('in.txt').read_text()
    with open('in.txt') as q: r = q.read() ; with open(s) as q: r = q.read() ; print(r, s)
    with open('out.txt', 'w') as q: q.write('one') ; with open(s, 'w') as q: q.write('two')
    """.replace("\n    ", " ; ")
    .replace("\\n", "\n")
    .strip(" ;")
    .split(" ; ")
)


def executed(cells: list[list[str]], folder: Path) -> tuple[list[str], str, dict]:
    "Cells without the lines that fail, what they print, and the plain values of their names"
    for file in folder.iterdir():
        file.unlink()
    (folder / "in.txt").write_text("zero")
    names, said, kept = {"Path": Path}, io.StringIO(), []
    with contextlib.chdir(folder), contextlib.redirect_stdout(said):
        for lines in cells:
            kept.append("")
            for line in lines:
                with contextlib.suppress(Exception):
                    exec(line, names)
                    kept[-1] += line + "\n"
    plain = (int, float, str, list, tuple, dict)
    left = {k: v for k, v in names.items() if isinstance(v, plain) and k[0] != "_"}
    return kept, said.getvalue(), left


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(LINES, min_size=1, max_size=4), min_size=2, max_size=6), st.booleans())
def test_the_notebook_computes_what_it_computed(tmp_path_factory, cells, everything):
    folder = tmp_path_factory.mktemp("n")
    texts, printed, values = executed(cells, folder)
    (folder / "out.txt").unlink(missing_ok=True)
    proposal = Proposal.of(stranger(folder / "x.ipynb", *texts))
    taken = {f.name for f in proposal.findings if "*" not in f.doubt} if everything else None
    adopted = [c for c in proposal.adopted(taken)["cells"] if c["cell_type"] == "code"]
    after = executed([["".join(c["source"])] for c in adopted], folder)
    assert after[1] == printed
    assert {name: after[2].get(name) for name in values} == values


def test_a_cell_that_has_lost_its_code_is_gone(tmp_path):
    path = stranger(tmp_path / "x.ipynb", "%%time\nn = 3", "# only words\nm = 4", "k = 5")
    cells = Proposal.of(path).adopted()["cells"]
    assert ["".join(c["source"]) for c in cells if c["cell_type"] == "code"][1:] == ["# only words"]


def test_a_notebook_changed_meanwhile_is_left_alone(tmp_path):
    path = stranger(tmp_path / "x.ipynb", "n = 3")
    proposal = Proposal.of(path)
    adopted = proposal.adopted()
    path.write_text(path.read_text() + "\n")
    changed = path.read_bytes()
    with pytest.raises(StepError, match="was changed meanwhile; nothing was written"):
        proposal.write(adopted)
    assert path.read_bytes() == changed


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            '{"cells": [], "metadata": {"kernelspec": {"name": "ir"}}, "nbformat": 4}',
            "is written in R;",
        ),
        ('{"cells": [], "metadata": {"language_info": {"name": "julia"}}}', "is written in julia;"),
        ('{"worksheets": [{"cells": []}], "nbformat": 3}', "convert it with: jupyter nbconvert"),
        ('{"cells": [], "nbformat": 3}', "is of nbformat 3; convert it with: jupyter nbconvert"),
        ("{", "cannot be read as a notebook"),
        (
            '{"cells": [{"cell_type": "code", "source": "x = = 1"}]}',
            "x.ipynb:cell 1 line 1: invalid",
        ),
        (None, "there is no such notebook"),
    ],
)
def test_what_cannot_be_adopted_is_said_in_a_sentence(there, content, says):
    stranger(there.root / "good.ipynb", "n = 3")
    if content is not None:
        (there.root / "x.ipynb").write_text(content)
    before = there.files()
    done = there.said("adopt", "good.ipynb", "x.ipynb", "--yes")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and says in done.stderr, (
        done.stderr
    )
    assert there.files() == before, "not even the good one was written"


def test_a_bare_notebook_with_html_in_its_name_and_a_kernel_of_elsewhere(there):
    name = "<script>alert(1)<b>.ipynb".replace("(1)", "")
    for metadata in ({}, {"kernelspec": {"name": "conda-env-theirs-py"}}):
        cells = [{"cell_type": "code", "source": ["n = 3\n", "print(n + 1)"]}]
        (there.root / name).write_text(json.dumps({"cells": cells, "metadata": metadata}))
        done = there.said("adopt", name, "--yes")
        assert done.returncode == 0, done.stderr
        run = there.said("run", name)
        assert run.returncode == 0, run.stdout + run.stderr
        assert there.said("adopt", name).returncode == 2, "it is a step already"
    (report,) = sorted((there.root / ".scalai/runs").glob("*/report.html"))[-1:]
    assert "<script>alert<b>" not in report.read_text()


def test_a_full_disk_leaves_the_notebook_as_it_was(there):
    path = stranger(there.root / "x.ipynb", "n = 3", "print(n)")
    before = path.read_bytes()
    words = f"ulimit -f 0; exec {sys.executable} -m scalai_nb adopt x.ipynb --yes"
    done = subprocess.run(
        ["bash", "-c", words], cwd=there.root, env=there.env, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert path.read_bytes() == before and list(there.root.glob("*x.ipynb*")) == [path]
