"""Notebooks that nobody here wrote: which share runs as a step after `scalai adopt --yes`, unedited

    python tests/campaigns/adoption.py [FOLDER] [--choose] [--only PACKAGE]

The notebooks come from source distributions on PyPI: documentation and examples, no tests. They
are chosen by a rule, before any is run: of each package in alphabetical order the first four in the
order of their paths, twenty in all, that have three code cells or more, import only what is
installed, and by their text call no network, no shell and no server of pages. `--choose` writes
the list beside this file anew. The packages themselves are installed into FOLDER, and nowhere else.
"""

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

LIST = Path(__file__).with_suffix(".tsv")
PACKAGES = {  # whose notebooks are looked at -> version, licence
    "control": ("0.10.2", "BSD-3-Clause"),
    "corner": ("2.3.0", "BSD-2-Clause"),
    "dynesty": ("3.1.0", "MIT"),
    "emcee": ("3.1.6", "MIT"),
    "hist": ("2.12.1", "BSD-3-Clause"),
    "lmfit": ("1.3.4", "BSD-3-Clause"),
    "mesa": ("3.3.1", "Apache-2.0"),
}
# Beside ours. mplhep, of hist's own extra `plot`, came after the first try: without it 13 ran.
NEEDED = (
    "asteval boost-histogram dill histoprint mplhep mplhep-data seaborn uhi uncertainties"
).split()
OF_EACH, OF_ALL, CELLS = 4, 20, 3
ELSEWHERE = re.compile(
    r"https?://|urlopen|requests\b|pooch|load_dataset\(|\btutorial\.|^\s*!|%pip|%conda|%%bash|SolaraViz",
    re.M,
)
SECONDS = 300  # that a notebook may take


def fetched(folder: Path) -> Path:
    "The source distributions, unpacked, and what they need, by pip in an environment of its own"
    pip = folder / "pip"
    if not pip.exists():
        venv.create(pip, with_pip=True)
    python = str(pip / "bin/python")
    for name, (version, _) in PACKAGES.items():
        source = folder / "sources" / name
        if source.exists():
            continue
        words = ["-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder / "sdists" / name)]
        subprocess.run([python, "-m", "pip", "download", *words, f"{name}=={version}"], check=True)
        (found,) = (folder / "sdists" / name).iterdir()
        with tarfile.open(found) as file:
            file.extractall(source, filter="data")
    installed = folder / "installed"
    if not installed.exists():
        names = [f"{n}=={v}" for n, (v, _) in PACKAGES.items()]
        words = ["-q", "--no-deps", "--target", str(installed), *names, *NEEDED]
        subprocess.run([python, "-m", "pip", "install", *words], check=True)
    return installed


def chosen(folder: Path, installed: Path) -> Iterator[tuple[str, str]]:
    "Package and path of each notebook that the rule takes"
    sys.path.append(str(installed))
    taken = 0
    for package in sorted(PACKAGES):
        names: list[str] = []
        (root,) = (folder / "sources" / package).iterdir()
        for path in sorted(root.rglob("*.ipynb")):
            parts = path.relative_to(root).parts
            new = path.name not in names and not any(p.startswith("test") for p in parts)
            if new and len(names) < OF_EACH and taken < OF_ALL and fits(path):
                names.append(path.name)
                taken += 1
                yield package, str(path.relative_to(root))


def fits(path: Path) -> bool:
    "Whether a notebook can be run here, as far as its text tells"
    from importlib.util import find_spec

    notebook = json.loads(path.read_text(encoding="utf-8"))
    texts = ["".join(c["source"]) for c in notebook.get("cells", []) if c["cell_type"] == "code"]
    code = "\n".join(texts)
    modules = set(re.findall(r"^\s*(?:import|from)\s+(\w+)", code, re.M))
    beside = {p.stem for p in path.parent.glob("*.py")}
    there = all(find_spec(m) for m in modules - beside)
    return len(texts) >= CELLS and there and not ELSEWHERE.search(code)


def tried(source: Path, installed: Path) -> tuple[str, str, float]:
    "What becomes of one notebook: runs, fails or as before; why; and the seconds that it took"
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(installed)])
    variables = {k: v for k, v in os.environ.items() if not k.startswith("SCALAI_")}
    variables |= {"PYTHONPATH": path, "SCALAI_TRACKERS": "none", "MPLBACKEND": "agg"}
    with tempfile.TemporaryDirectory() as there:
        work = Path(there) / "work"
        shutil.copytree(source.parent, work)

        def call(*words: str) -> tuple[int, str]:
            with subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=work,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process:
                try:
                    said = process.communicate(timeout=SECONDS)[0]
                except subprocess.TimeoutExpired:
                    process.terminate()
                    return 124, f"took more than {SECONDS} s"
            return process.returncode, said

        start = time.perf_counter()
        status, said = call("scalai_nb", "adopt", source.name, "--yes")
        if status == 0:
            found = re.search(r"^.*\.ipynb: (.*?)(?:; left.*)?$", said, re.M)
            status, said = call("scalai_nb", "run", source.name, "--plain")
        seconds = time.perf_counter() - start
        if status == 0:
            return "runs", found[1] if found else "", seconds
        why = next((w for w in said.splitlines() if re.search("✘|error:|Error", w)), said[-200:])
        shutil.copy(source, work / "as_it_was.ipynb")
        before = call("jupyter", "execute", "as_it_was.ipynb")[0]
        return "as before" if before else "FAILS", why.strip()[:160], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default=".services/adoption", type=Path)
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--only", default="")
    words = parser.parse_args()
    folder = words.folder.absolute()
    installed = fetched(folder)
    if words.choose:
        rows = [(p, *PACKAGES[p], path) for p, path in chosen(folder, installed)]
        with LIST.open("w", newline="") as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows(
                [("package", "version", "licence", "notebook"), *rows]
            )
    with LIST.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    results = []
    for row in rows:
        if words.only not in row["package"]:
            continue
        (root,) = (folder / "sources" / row["package"]).iterdir()
        how, why, seconds = tried(root / row["notebook"], installed)
        results.append(how)
        print(f"{how:9}  {seconds:5.0f} s  {row['package']} {row['notebook']}: {why}", flush=True)
    runs = results.count("runs")
    print(
        f"{runs} of {len(results)} run without a hand edit; "
        f"{results.count('as before')} fail unadopted as well"
    )


if __name__ == "__main__":
    main()
