"""Run the notebooks and keep what they show: `make outputs`

`python tests/outputs.py --check` compares. An output is replaced only when it says something else:
times, dates, ids, ports and paths may differ, and numbers by rounding. Paths of this machine are
never kept.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parent.parent
LESSONS = ("nbs", "dashboards")
SKIPPED = r"^([_.]|pipelines$)"  # steps are run by their pipeline, a dashboard behind it
PIPELINES = Path("nbs/pipelines")
PYTHON = (3, 11)  # another one brings other versions of libraries, whose numbers differ
WIDGET = "application/vnd.jupyter.widget-view+json"  # is of a kernel that has ended
LARGEST = 100_000  # bytes of a picture
ENVIRONMENT = {  # of the notebooks, as it is of no matter who runs them
    "SCALAI_ENV": "laptop",
    "SCALAI_USER": "you",
    "COLUMNS": "100",
    "PYTHONHASHSEED": "0",
    "OMP_WAIT_POLICY": "PASSIVE",  # as in conftest.py
    "OPENBLAS_THREAD_TIMEOUT": "4",
}

# nbdev-test, whose shells are not emptied one by one at the end: Python 3.13 takes minutes for that
NBDEV_TEST = """
from IPython.core.interactiveshell import InteractiveShell
from nbdev.test import nbdev_test
InteractiveShell.atexit_operations = lambda shell: None
nbdev_test({path!r}, n_workers={processes}, save=True, skip_folder_re={skipped!r})
"""

HIDDEN = [  # what is never kept: paths of this machine
    (re.compile(re.escape(str(ROOT))), "…"),
    (re.compile(rf"(?:{re.escape(tempfile.gettempdir())}|/tmp)/[\w.-]+"), "/tmp/…"),
    (re.compile(re.escape(str(Path.home())) + r"(?=/)"), "~"),
]
CHANGING = [  # what may differ from run to run
    re.compile(r"\b20[2-9]\d-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|\+\d\d:\d\d)?)?"),
    re.compile(
        r"\b\d{1,2} (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\w* \d\d:\d\d(?::\d\d)?"
    ),
    re.compile(r"\b\d\d:\d\d(?::\d\d)?\b"),
    re.compile(r"\b\d{8}-\d{6}\w*"),  # of a run's id
    re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{6,64}\b"),
    re.compile(r"datetime\.datetime\([^)]*\)"),
    re.compile(
        r"\b(?=[0-9A-Z]*[A-Z])(?:[0-9A-Z]{6}|[0-9A-Z]{8}|[0-9A-Z]{12}|[0-9A-Z]{20})\b"
    ),  # a version of the lake
    re.compile(r"\b[\d.,]+ ?(?:kB|MB|GB|KiB|MiB|GiB)\b"),
    re.compile(r"\b0x[0-9a-f]+\b"),
    re.compile(r"\b\d+ (?:min|h) \d\d? (?:s|min)\b"),
    re.compile(r"\b[\d.,]+ ?(?:ns|µs|ms|s|min|h|worker-seconds|MB/s|GB/s|rows/s)\b"),
    re.compile(r"(?<=127\.0\.0\.1:)\d+|(?<=localhost:)\d+"),
    re.compile(r"(?i)(?<=\bprocess )\d+|(?<=\bpid )\d+|(?<=\bpid=)\d+"),
    re.compile(r"(?m)(?<=^latency_ms).*$"),  # of a check of the gate
    re.compile(r"(?m)^\d+ of \d+: .*$"),  # progress of what runs side by side
    re.compile(r"\d+\.\d+(?=\s+learnt from)"),  # seconds of a training
    re.compile(r"/tmp/…\S*"),
    re.compile(r"…\s+[\d.]+\s+…"),  # a number between two that may differ, say seconds of workers
]
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
TOKEN = re.compile(r"…|\w+|\W")
DIGITS = re.compile(r"\d{6}|\d{8}|\d{12}|\d{20}")  # a version of the lake that has no letter


def lessons() -> list[Path]:
    "The notebooks that run by themselves, relative to the project"
    found = sorted(p.relative_to(ROOT) for p in (ROOT / "nbs").rglob("*.ipynb"))
    return [p for p in found if not any(re.match(SKIPPED, part) for part in p.parts)]


def pipelines() -> list[str]:
    "The names of the pipelines"
    return sorted(p.name for p in (ROOT / PIPELINES).iterdir() if p.is_dir())


def steps(pipeline: str, project: Path) -> dict[Path, Path]:
    "Where each step of a pipeline is, and where its first run in a copy of the project left it"
    runs = sorted((project / ".scalai/runs").glob(f"{pipeline}-*"))
    found = sorted((ROOT / PIPELINES / pipeline).glob("*.ipynb"))
    return {p.relative_to(ROOT): runs[0] / p.name for p in found}


def cells(path: Path) -> list[dict]:
    "The code cells of a notebook"
    nb = json.loads(path.read_text(encoding="utf-8"))
    return [c for c in nb["cells"] if c["cell_type"] == "code"]


# ---- what an output says


def text(output: dict) -> str:
    "What an output says, or what kind of picture it is"
    if output["output_type"] == "stream":
        return "".join(output["text"])
    if output["output_type"] == "error":
        return output["ename"]
    data = output["data"]
    return "".join(data.get("text/plain", "")) + "".join(k for k in sorted(data) if "image" in k)


def close(a: str, b: str) -> bool:
    "Whether two numbers are one, up to rounding"
    return math.isclose(float(a), float(b), rel_tol=1e-4, abs_tol=1e-9)


def same(a: str, b: str) -> bool:
    "Whether two texts say the same"
    for pattern in CHANGING:
        a, b = pattern.sub("…", a), pattern.sub("…", b)
    a, b = without_digits(a, b)
    a, b = (re.sub(r"[ \t─━═-]+", " ", x) for x in (a, b))
    a, b = (re.sub(r" ?\n ?", "\n", x).strip() for x in (a, b))
    lines = [
        "\n".join(sorted(x.splitlines())) for x in (a, b)
    ]  # what runs side by side ends as it can
    return level(a, b) or level(*lines)


def without_digits(a: str, b: str) -> tuple[str, str]:
    "Two texts, in which digits may differ where the other text has what may differ"
    x, y = TOKEN.findall(a), TOKEN.findall(b)
    if len(x) != len(y):
        return a, b
    pairs = zip(x, y, strict=True)
    alike = ["…" in pair and any(map(DIGITS.fullmatch, pair)) for pair in pairs]
    a, b = ("".join("…" if is_id else t for t, is_id in zip(z, alike, strict=True)) for z in (x, y))
    return a, b


def level(a: str, b: str) -> bool:
    "Whether two texts are the same but for the rounding of their numbers"
    if NUMBER.sub("#", a) != NUMBER.sub("#", b):
        return False
    return all(close(x, y) for x, y in zip(NUMBER.findall(a), NUMBER.findall(b), strict=True))


def joined(outputs: list[dict]) -> list[str]:
    "What outputs say, pieces of one stream as one"
    found = []
    for kind in ("stdout", "stderr"):
        pieces = [text(o) for o in outputs if o.get("name") == kind]
        found += ["".join(pieces)] if pieces else []
    return found + [text(o) for o in outputs if o["output_type"] != "stream"]


# ---- running


def tidy(output: dict) -> dict:
    "An output without paths of this machine and without what changes from run to run in HTML"

    def hide(value):
        if isinstance(value, list):
            return [hide(v) for v in value]
        if isinstance(value, str):
            for pattern, shown in HIDDEN:
                value = pattern.sub(shown, value)
        return value

    kept = {k: hide(v) for k, v in output.items() if k in ("text", "ename", "evalue", "traceback")}
    data = (
        {"data": {k: hide(v) for k, v in output.get("data", {}).items() if k != WIDGET}}
        if "data" in output
        else {}
    )
    return output | kept | data


def copied() -> Path:
    "A copy of the project to run notebooks in"
    copy = Path(tempfile.mkdtemp(prefix="outputs-"))
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.py")
    for name in LESSONS:
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    (copy / "scalai_nb").symlink_to(ROOT / "scalai_nb")
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(ROOT / name, copy)
    return copy


def call(copy: Path, *words: str) -> bool:
    "Whether Python succeeds with these words in the copy"
    command = [sys.executable, *words]
    return not subprocess.run(command, cwd=copy, env=os.environ | ENVIRONMENT).returncode


def tested(copy: Path, path: str, processes: int) -> bool:
    "Whether the notebooks at `path` run in the copy, from top to bottom; they are saved there"
    return call(copy, "-c", NBDEV_TEST.format(path=path, processes=processes, skipped=SKIPPED))


def run(
    copy: Path, chosen: list[Path], processes: int, rooms: list[str]
) -> tuple[dict[Path, Path], bool]:
    "Run the notebooks, those of a pipeline by a run of it; where each is left, and whether all ran"
    done, well = {}, True
    alone = [p for p in chosen if p in lessons()]
    paths = [f"nbs/{room}" for room in rooms] or map(str, alone)
    for path in ["nbs"] if len(alone) == len(lessons()) else paths:
        well &= tested(copy, path, processes)
    done |= {p: copy / p for p in alone}
    for name in pipelines():
        if any(p.parent == PIPELINES / name for p in chosen):
            well &= call(copy, "-m", "scalai_nb", "run", name)
            done |= steps(name, copy)
    for path in chosen:
        if path.parts[0] == "dashboards":
            well &= tested(copy, str(path), processes)
            done[path] = copy / path
    return done, well


def refresh(path: Path, ran: Path, check: bool = False) -> list[str]:
    "Take over what the notebook showed when it ran, where that is something else; what differs"
    nb = json.loads((ROOT / path).read_text(encoding="utf-8"))
    new = {c["id"]: [tidy(o) for o in c["outputs"]] for c in cells(ran)}
    differ = []
    for cell in nb["cells"]:
        if cell["cell_type"] != "code" or cell["id"] not in new:
            continue
        outputs = new[cell["id"]]
        was, now = joined(cell["outputs"]), joined(outputs)
        if all(same(a, b) for a, b in zip_longest(was, now, fillvalue="")):
            continue
        shown = [" | ".join(x)[:600] for x in (was, now)]
        differ.append(f"{path} cell {cell['id']}:\n    kept: {shown[0]!r}\n    now:  {shown[1]!r}")
        cell["outputs"] = [
            o | {"execution_count": None} if "execution_count" in o else o for o in outputs
        ]
    if differ and not check:
        done = json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True)
        (ROOT / path).write_text(done + "\n", encoding="utf-8")
    return differ


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "notebook", nargs="*", type=Path, help="relative to the project; default: all"
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail when a text differs"
    )
    parser.add_argument("--lessons", action="store_true", help="without pipelines and dashboards")
    parser.add_argument("--rooms", nargs="*", default=[], help="lessons of these folders only")
    parser.add_argument("--processes", type=int, default=2)
    words = parser.parse_args()
    if words.check and sys.version_info[:2] != PYTHON:
        print(f"outputs: run here, and compared on Python {'.'.join(map(str, PYTHON))} only")
    everything = [p.relative_to(ROOT) for name in LESSONS for p in (ROOT / name).rglob("*.ipynb")]
    chosen = words.notebook or (lessons() if words.lessons else sorted(everything))
    if words.rooms:
        chosen = [p for p in lessons() if p.parts[1] in words.rooms]
    copy = copied()
    try:
        done, well = run(copy, chosen, words.processes, words.rooms)
        differ = [line for path in done for line in refresh(path, done[path], words.check)]
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    print(*differ, sep="\n")
    print(
        f"outputs: {len(differ)} cells of {len(done)} notebooks "
        f"{'differ' if words.check else 'are new'}"
        f"{'' if well else '; a notebook has failed, the lines above say where'}"
    )
    compared = words.check and sys.version_info[:2] == PYTHON
    return 0 if well and not (compared and differ) else 1


if __name__ == "__main__":
    sys.exit(main())
