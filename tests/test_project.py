"""What is around the library: locks, images, manifests, make, CI, and what the wheel holds"""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import ExitStack
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from conftest import free_port
from packaging.requirements import Requirement

import scalai_nb
from scalai_nb.environment import environment

ROOT = Path(__file__).parent.parent
SECTIONS = ["laptop", "ci", "gpu", "cluster"]
PYTHONS = ["3.11", "3.12", "3.13"]
SCRIPTS = Path(sys.executable).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_sections_of_settings_are_these():
    for name in SECTIONS:
        assert environment(name, settings=ROOT / "settings.ini").name == name
    assert re.findall(r"^\[(\w+)\]", (ROOT / "settings.ini").read_text(encoding="utf-8"), re.M) == [
        "DEFAULT",
        *SECTIONS,
    ]


# ---- locks


def pins(name: str) -> list[Requirement]:
    "The requirements of environments/`name`, through its `-r` lines"
    found = []
    for line in (ROOT / "environments" / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            found += pins(line.split()[1])
        elif line and not line.startswith("#"):
            found.append(Requirement(line))
    return found


EXTRAS = {"laptop": [], "ci": [], "gpu": ["gpu"], "cluster": ["kubernetes"]}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("section", SECTIONS)
def test_the_lock_holds_all_that_the_project_asks_for(section, python):
    "Add a dependency without `make lock`, and this names it"
    where = {
        "python_version": python,
        "python_full_version": f"{python}.5",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    pinned = {
        p.name: next(iter(p.specifier)).version
        for p in pins(f"{section}.txt")
        if not p.marker or p.marker.evaluate(where)
    }
    asked = [
        *PROJECT["dependencies"],
        *(
            r
            for e in [
                "trees",
                "search",
                "convert",
                "wandb",
                "lab",
                "flights",
                "dev",
                *EXTRAS[section],
            ]
            for r in PROJECT["optional-dependencies"][e]
        ),
    ]
    wrong = [
        r
        for r in map(Requirement, asked)
        if r.name not in pinned or not r.specifier.contains(pinned[r.name])
    ]
    assert not wrong, "run make lock"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_line_of_a_lock_is_one_version(section):
    loose = [str(p) for p in pins(f"{section}.txt") if [s.operator for s in p.specifier] != ["=="]]
    assert not loose


# ---- images and manifests

DOCKERFILE = (ROOT / "environments/Dockerfile").read_text(encoding="utf-8")


def test_the_dockerfile_builds_every_section_from_files_that_exist():
    for section in SECTIONS:
        assert re.search(rf"^FROM \S+ AS base-{section}$", DOCKERFILE, re.M)
        assert f"environments/{section}.txt" in re.sub(r"\$ENVIRONMENT", section, DOCKERFILE)
    for sources in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", DOCKERFILE, re.M):
        for name in sources.split():
            assert (ROOT / name).exists(), name


def test_the_image_runs_as_nobody_special_and_leaves_data_out():
    final = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert re.search(r"^USER [1-9]\d*$", final, re.M) and "useradd --uid 10001" in final
    ignored = (
        (ROOT / "environments/Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    )
    assert {".git", ".scalai", ".venv*"} <= set(ignored)


def manifests() -> list[dict]:
    return [
        m
        for name in ("cluster.yaml", "cluster-run.yaml")
        for m in yaml.safe_load_all((ROOT / "environments" / name).read_text(encoding="utf-8"))
    ]


def pods() -> dict[str, dict]:
    "Pod specifications by the kind of part they are"
    return {
        t["metadata"]["labels"]["part"]: t["spec"]
        for m in manifests()
        if (t := m["spec"].get("template"))
    }


def test_every_pod_is_confined_and_says_what_it_takes():
    assert set(pods()) == {"scheduler", "worker", "run"}
    for pod in pods().values():
        assert (
            pod["securityContext"]["runAsNonRoot"]
            and str(pod["securityContext"]["runAsUser"]) in DOCKERFILE
        )
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["image"] == "scalai-nb:cluster"
        assert (
            container["resources"]["requests"].keys() == {"cpu", "memory"}
            and container["resources"]["limits"]["memory"]
        )
        security = container["securityContext"]
        assert (
            security["readOnlyRootFilesystem"]
            and not security["allowPrivilegeEscalation"]
            and security["capabilities"] == {"drop": ["ALL"]}
        )
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_the_service_leads_to_the_scheduler_and_runs_know_its_address(monkeypatch):
    by = {(m["kind"], m["metadata"].get("name")): m for m in manifests()}
    service = by["Service", "scalai-scheduler"]["spec"]
    template = by["Deployment", "scalai-scheduler"]["spec"]["template"]
    assert service["selector"].items() <= template["metadata"]["labels"].items()
    ports = {p["name"] for p in template["spec"]["containers"][0]["ports"]}
    assert {p["targetPort"] for p in service["ports"]} == ports
    for kind, name in by:  # a selector that misses its own pods is refused by the API server
        if kind == "Deployment":
            spec = by[kind, name]["spec"]
            assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    address = next(
        e["value"] for e in pods()["run"]["containers"][0]["env"] if e["name"] == "SCALAI_CLUSTER"
    )
    assert (
        address
        == f"tcp://scalai-scheduler:{service['ports'][0]['port']}"
        == pods()["worker"]["containers"][0]["command"][2]
    )
    monkeypatch.setenv("SCALAI_CLUSTER", address)
    assert environment("cluster", settings=ROOT / "settings.ini").cluster == address


def test_the_commands_of_the_manifests_make_a_cluster_that_computes(tmp_path):
    "Scheduler and worker as the pods start them, with this machine's address for the cluster's"
    from distributed import Client

    port = free_port()
    here = {
        "0.0.0.0": "127.0.0.1",
        "8786": str(port),
        ":8787": "127.0.0.1:0",
        "15GiB": "1GiB",
        "4": "1",
        "/tmp": str(tmp_path),
        "tcp://scalai-scheduler:8786": f"tcp://127.0.0.1:{port}",
    }
    with ExitStack() as stack:
        for part in ("scheduler", "worker"):
            command = [here.get(word, word) for word in pods()[part]["containers"][0]["command"]]
            log = stack.enter_context((tmp_path / part).open("wb"))
            process = stack.enter_context(
                subprocess.Popen([SCRIPTS / command[0], *command[1:]], stdout=log, stderr=log)
            )
            stack.callback(process.terminate)
        client = stack.enter_context(Client(f"tcp://127.0.0.1:{port}", timeout=60))
        client.wait_for_workers(1, timeout=60)
        assert client.submit(sum, [1, 2, 3]).result(timeout=60) == 6
        assert [w["nthreads"] for w in client.scheduler_info()["workers"].values()] == [1]


# ---- make, on a bare machine: stand-ins for Python, uv and apt-get write down how they were called

TOOLS = (
    "bash sh make sed grep ls readlink date dirname mkdir ln cat cp flock tail tee mktemp rm "
    "touch id env timeout"
).split()
PYTHON = """
case "$*" in
  *"-m venv"*) for folder; do :; done; mkdir -p $folder/bin; touch $folder/pyvenv.cfg; \
cp $0 $folder/bin/python;;
  *"%d.%d"*) echo 3.12;;
esac
"""
UV = """
for word; do :; done
if [ $1 = venv ]; then mkdir -p $word/bin; touch $word/pyvenv.cfg; \
cp $(dirname $0)/python3 $word/bin/python; else [ -e network ]; fi
"""


class Machine:
    "A copy of the scaffolding, and a PATH with nothing but everyday tools and the stand-ins"

    def __init__(self, folder):
        self.repo, self.bin, self.log = folder / "repo", folder / "bin", folder / "log"
        self.bin.mkdir()
        self.log.touch()
        for name in ("environments", ".ci"):
            shutil.copytree(ROOT / name, self.repo / name)
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, self.repo)
        for tool in filter(shutil.which, TOOLS):
            (self.bin / tool).symlink_to(shutil.which(tool))

    def has(self, name: str, script: str = ""):
        "Put a stand-in on the PATH"
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!{shutil.which('bash')}\necho {name} $* >>{self.log}\n{script}\n")
        path.chmod(0o755)

    def __call__(self, *command):
        return subprocess.run(
            command,
            cwd=self.repo,
            env={"PATH": str(self.bin), "HOME": str(self.repo)},
            capture_output=True,
            text=True,
        )

    def install(self, *words, target=".venv/.installed"):
        return self("make", *words, target)

    def calls(self, words: str) -> int:
        return sum(words in line for line in self.log.read_text().splitlines())


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_make_installs_once_and_again_when_the_lock_changes(machine):
    machine.has("python3", PYTHON)
    for expected in (1, 1):
        done = machine.install()
        assert done.returncode == 0, done.stderr
        assert machine.calls("pip install") == 3 * expected  # the lock, PyTorch, then scalai-nb
    assert (
        machine.calls("--no-deps --requirement environments/lock.txt")
        == machine.calls("--editable .")
        == 1
    )
    later = (machine.repo / ".venv/.installed").stat().st_mtime + 10
    os.utime(machine.repo / "environments/lock.txt", (later, later))
    machine.install()
    assert machine.calls("pip install") == 6


def test_pytorch_is_taken_from_where_pip_is_told_to_look_and_the_rest_stays_as_locked(machine):
    machine.has(
        "python3",
        'case "$*" in *"config get"*) echo /wheels;; *tomllib*) echo "torch>=2.7";; esac' + PYTHON,
    )
    machine.has("uv", "touch network" + UV)
    assert machine.install().returncode == 0
    first, second = (
        line for line in machine.log.read_text().splitlines() if line.endswith("torch>=2.7")
    )
    assert "--no-index --find-links /wheels" in first and "--no-deps" in first
    assert "--constraint" in second and "--no-deps" not in second


def test_an_install_that_was_cut_off_is_taken_up_again(machine):
    machine.has("python3", PYTHON)
    machine.has("uv", UV)
    assert (
        machine.install().returncode != 0 and not (machine.repo / ".venv/.installed").exists()
    )  # no network
    (machine.repo / "network").touch()
    assert machine.install().returncode == 0 and (machine.repo / ".venv/.installed").exists()
    assert machine.calls("uv venv") == 1 and not machine.calls("-m pip install")


def test_another_python_gets_another_folder(machine):
    machine.has("python3.13", PYTHON)
    assert (
        machine.install("PYTHON=python3.13", target=".venv-python3.13/.installed").returncode == 0
    )
    assert ".venv-python3.13" in machine.install("-n", "PYTHON=python3.13", target="demo").stdout


def test_make_passes_more_words_to_pytest(machine):
    assert (
        "/pytest --numprocesses 2 --dist worksteal -k lake "
        in machine.install("-n", "ARGS=-k lake", target="test").stdout
    )
    assert "TMPDIR" not in machine.install("-n", target="test").stdout
    assert "TMPDIR=/here " in machine.install("-n", "FILES=/here", target="test").stdout
    more = machine.install("-n", "PROCESSES=8", target="test").stdout
    assert (
        "outputs.py --check --lessons --processes 8" in more and "/pytest --numprocesses 8 " in more
    )


def test_what_is_missing_is_named(machine):
    assert "apt install python3 python3-venv" in machine.install().stderr
    machine.has("python2", "exit 1")
    assert (
        "python2 is not a Python 3.11 to 3.13"
        in machine.install("PYTHON=python2", "VENV=.venv").stderr
    )
    machine.has("python3", 'case "$*" in *"import venv"*) exit 1;; esac' + PYTHON)
    assert "apt install python3.12-venv" in machine.install().stderr


def test_a_folder_of_somebody_else_is_left_alone(machine):
    machine.has("python3", PYTHON)
    (machine.repo / "thesis").mkdir()
    (machine.repo / "thesis/chapter1").touch()
    assert (
        "not a virtual environment"
        in machine.install("VENV=thesis", target="thesis/.installed").stderr
    )
    assert [p.name for p in (machine.repo / "thesis").iterdir()] == ["chapter1"]


def test_help_lists_every_target(machine):
    listed = re.findall(r"^  make (\S+)", machine("make").stdout, re.M)
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert listed == phony


@pytest.mark.parametrize(
    "tools, says, installs",
    [
        ({"chromium": "", "g++": ""}, "Chromium is there", 0),
        ({"g++": ""}, "no Chromium and no apt-get", 0),
        ({"chromium": ""}, "no C++ compiler and no apt-get", 0),
        ({"g++": "", "apt-get": "", "id": "echo 1000"}, "sudo apt-get install chromium", 0),
        (
            {"apt-get": "echo no network; exit 1", "id": "echo 0"},
            "could not install Chromium (no network)",
            7,
        ),
        (
            {
                "clang++": "",
                "apt-get": "cp $(dirname $0)/apt-get $(dirname $0)/chromium",
                "id": "echo 0",
            },
            "installed: ",
            6,
        ),
    ],
)
def test_services_never_fail(machine, tools, says, installs):
    for name, script in tools.items():
        machine.has(name, script)
    done = machine("make", "test-services")
    assert done.returncode == 0 and says in done.stdout, done
    assert machine.calls("apt-get install") == installs


# ---- continuous integration


@pytest.mark.parametrize("code", [0, 1])
def test_ci_ends_with_the_summaries_and_fails_when_a_suite_does(machine, code):
    machine.has("make", f"echo 3 passed, 1 skipped in 0.5s; case $* in *3.13*) exit {code};; esac")
    machine.has("python3.13")
    (machine.repo / ".venv/bin").mkdir(parents=True)
    (machine.repo / ".venv/bin/python").symlink_to(
        machine.bin / "python3.13"
    )  # a Python whose --version is not 3.13
    done = machine(".ci/run")
    assert done.returncode == code, done
    assert done.stdout.splitlines()[-2:] == 2 * ["3 passed, 1 skipped in 0.5s"]
    assert machine.calls("make test VENV=.venv") == 2 and machine.calls("PYTHON=python3.13") == 1


@pytest.mark.parametrize("kB, found", [("5000000", 1), ("3000000", 0), ("none", 0)])
def test_ci_puts_files_of_tests_into_memory_where_there_is_room(machine, kB, found):
    machine.has("make", "for word; do case $word in FILES=/*) [ -d ${word#*=} ];; esac; done")
    machine.has("df", f"echo Avail; echo {kB}")
    machine.has("sed", "echo 9000000")  # of memory
    machine.has("true")
    done = machine(".ci/run")
    assert done.returncode == 0 and done.stderr.strip().startswith("ci: .venv took"), done
    (told,) = re.findall(r"^make test VENV=\.venv FILES=(.*)$", machine.log.read_text(), re.M)
    assert told.startswith("/dev/shm/ci.") == bool(found) and not Path(told or "/none").exists()


@pytest.mark.parametrize(
    "reason, ci, code",
    [("no CUDA device here", "true", 0), ("felt like it", "true", 1), ("felt like it", "", 0)],
)
def test_ci_takes_no_skip_that_is_not_listed(tmp_path, reason, ci, code):
    for name in ("conftest.py", "allowed_skips.txt"):
        shutil.copy(ROOT / "tests" / name, tmp_path)
    (tmp_path / "test_it.py").write_text(
        f"import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip({reason!r})\n"
    )
    env = {**os.environ, "CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", tmp_path],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout
    assert ("does not list: felt like it" in done.stdout) == bool(code)


# ---- the wheel


def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "scalai_nb", tmp_path / "scalai_nb", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    here = {
        str(p.relative_to(ROOT))
        for p in (ROOT / "scalai_nb").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    missing = sorted(here - set(ZipFile(wheel).namelist()))
    assert not missing, "name them in [tool.setuptools.package-data]"
    panel = [n.partition(".data/data/")[2] for n in ZipFile(wheel).namelist() if ".data/data" in n]
    folder = ROOT / "scalai_nb/jupyter/lab/panel"
    static = (f"static/{p.name}" for p in (folder / "static").iterdir())
    names = ("package.json", "schemas/scalai-nb/panel.json", *static)
    assert sorted(panel) == sorted(
        ["etc/jupyter/jupyter_server_config.d/scalai_nb.json"]
        + [f"share/jupyter/labextensions/scalai-nb/{name}" for name in names]
    )


def test_the_panel_is_of_this_version_small_and_asks_nobody():
    folder = ROOT / "scalai_nb/jupyter/lab/panel"
    about = json.loads((folder / "package.json").read_text(encoding="utf-8"))
    assert about["version"] == scalai_nb.__version__
    bundle = b"".join(p.read_bytes() for p in sorted((folder / "static").iterdir()))
    print(f"the panel's bundle: {len(gzip.compress(bundle)) / 1e3:.1f} kB compressed")
    assert len(gzip.compress(bundle)) < 60_000
    assert set(re.findall(rb"https?://[^\s\"'`]+", bundle)) <= {
        b"http://www.w3.org/2000/svg",
    }, "an address that is no namespace"
    assert not re.search(rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write", bundle)
