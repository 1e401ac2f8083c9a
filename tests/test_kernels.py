"""Kernels of environments: `install`'s really start, choose the environment, load the magics"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel
from toy import UNPRIVILEGED, notebook

from scalai_nb.errors import EnvironmentNotFound, ScalaiError, SettingsError
from scalai_nb.jupyter import kernels

SETTINGS = "[DEFAULT]\nlake = data/lake\n\n[laptop]\n\n[ci]\nworkers = 2\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project with two environments, and a Jupyter that finds only the kernels the test installs"
    (tmp_path / "settings.ini").write_text(SETTINGS)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_cell(kernel, source, cwd):
    "What `source` prints in a fresh kernel; an error in it fails the test"
    manager, client = start_new_kernel(kernel_name=kernel, cwd=str(cwd))
    printed = []
    try:
        reply = client.execute_interactive(
            source, timeout=60, output_hook=lambda m: printed.append(m["content"].get("text", ""))
        )
        assert reply["content"]["status"] == "ok", reply["content"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return "".join(printed)


@pytest.mark.parametrize("name", ["laptop", "ci"])
def test_a_kernel_started_elsewhere_is_in_its_environment(project, tmp_path_factory, name):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    kernels.install(prefix=project, settings=project / "settings.ini")
    source = (
        "from scalai_nb import environment; env = environment(); "
        "print(env.name, env.root, 'lake' in get_ipython().magics_manager.magics['line'])"
    )
    assert run_cell(f"scalai-{name}", source, elsewhere).split() == [name, str(project), "True"]


def test_papermill_takes_the_kernel(project):
    kernels.install(["ci"], prefix=project)
    nb = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {},
        "cells": [
            {
                "id": "a",
                "cell_type": "code",
                "metadata": {},
                "outputs": [],
                "execution_count": None,
                "source": "import os; print(os.environ['SCALAI_ENV'])",
            }
        ],
    }
    (project / "in.ipynb").write_text(json.dumps(nb))
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "-k", "scalai-ci", "in.ipynb", "out.ipynb"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    out = json.loads((project / "out.ipynb").read_text())
    assert out["cells"][-1]["outputs"][0]["text"] == ["ci\n"]


def test_one_kernel_a_section_with_a_name_to_show(project):
    made = dict(kernels.install(prefix=project))
    assert sorted(made) == ["scalai-ci", "scalai-laptop"]
    spec = json.loads(Path(made["scalai-ci"], "kernel.json").read_text())
    assert spec["display_name"] == "scalai (ci)"
    assert spec["argv"][0] == sys.executable
    assert spec["env"] == {"SCALAI_ENV": "ci", "SCALAI_SETTINGS": str(project / "settings.ini")}


def test_a_kernel_installs_from_within_a_kernel(project, monkeypatch):
    monkeypatch.setenv("SCALAI_SETTINGS", str(project / "settings.ini"))
    monkeypatch.chdir("/")
    assert [name for name, _ in kernels.install(["ci"], prefix=project)] == ["scalai-ci"]


def test_user_kernels_are_listed_and_removed(project):
    made = kernels.install(user=True)
    assert all(path.startswith(str(project / "user")) for _, path in made)
    assert kernels.installed() == sorted(made)
    assert kernels.remove(["scalai-ci"]) == [m for m in made if m[0] == "scalai-ci"]
    assert [name for name, _ in kernels.installed()] == ["scalai-laptop"]
    kernels.remove()
    assert kernels.installed() == []


def test_other_kernels_are_left_alone(project):
    subprocess.run(
        [sys.executable, "-m", "ipykernel", "install", "--prefix", str(project), "--name", "mine"],
        check=True,
        capture_output=True,
    )
    kernels.install(["ci"], prefix=project)
    kernels.remove()
    assert (project / "share/jupyter/kernels/mine/kernel.json").is_file()


def test_a_kernel_whose_interpreter_or_environment_has_gone_is_found(project):
    from scalai_nb.operations.doctor import examine

    made = dict(kernels.install(prefix=project))
    assert kernels.broken() == []
    spec = Path(made["scalai-ci"], "kernel.json")
    told = json.loads(spec.read_text())
    told["argv"][0] = str(project / "gone" / "python")
    spec.write_text(json.dumps(told))
    (project / "settings.ini").write_text("[ci]\n")
    ci, laptop = kernels.broken()
    assert ci == ("scalai-ci", f"{told['argv'][0]} is not there")
    assert laptop[0] == "scalai-laptop" and "'laptop' is not in settings.ini" in laptop[1]
    check = next(c for c in examine("ci") if c.name == "environment kernels")
    assert not check.ok and "scalai-ci: " in check.found and "kernel install" in check.remedy
    (project / "settings.ini").unlink()
    assert "cannot be read" in dict(kernels.broken())["scalai-laptop"]


@pytest.mark.parametrize(
    ("found", "ok"), [("4.4.10", False), ("4.5.0", True), ("4.6.3", True), ("4.7.0", False)]
)
def test_a_jupyterlab_in_which_the_panel_was_not_tried_is_named(monkeypatch, found, ok):
    from scalai_nb.operations import doctor

    monkeypatch.setattr(doctor, "version", lambda name: found)
    check = next(c for c in doctor.examine() if c.name == "JupyterLab")
    assert check.ok == ok and found in check.found
    assert ok or ("4.5 and 4.6" in check.found and "jupyterlab==4.6.*" in check.remedy)


@pytest.mark.parametrize(
    ("settings", "names", "error", "words"),
    [
        (SETTINGS, ["lpatop"], EnvironmentNotFound, "Did you mean 'laptop'?"),
        (
            SETTINGS + "\n[gpu box]\n",
            None,
            SettingsError,
            "[gpu box] of settings.ini cannot name a kernel",
        ),
        (
            SETTINGS + "\n[zz]\nworkers = many\n",
            None,
            SettingsError,
            "workers = 'many' is not valid",
        ),
    ],
)
def test_nothing_is_written_when_a_section_is_wrong(project, settings, names, error, words):
    (project / "settings.ini").write_text(settings)
    with pytest.raises(error) as e:
        kernels.install(names, prefix=project)
    assert words in str(e.value)
    assert not (project / "share").exists()


def test_a_place_that_cannot_be_written_names_the_remedy(project):
    (project / "file").write_text("")
    with pytest.raises(ScalaiError, match="pass user=True or a prefix that is yours"):
        kernels.install(["ci"], prefix=project / "file")


def test_a_home_that_cannot_be_written_is_named_and_a_kernel_starts_there(project, monkeypatch):
    kernels.install(["ci"], prefix=project)
    home = project / "home"
    home.mkdir(mode=0o555)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("JUPYTER_DATA_DIR")
    notebook(project / "one.ipynb", None, "import scalai_nb as sn\nprint(sn.environment().name)")

    def ended(script, *words):
        command = [*UNPRIVILEGED, Path(sys.executable).parent / script, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    done = ended("scalai", "kernel", "install", "ci", "--user")
    assert done.returncode == 2 and "set JUPYTER_DATA_DIR to a folder that is yours" in done.stderr
    done = ended("jupyter-execute", "--inplace", "--kernel_name=scalai-ci", "one.ipynb")
    assert done.returncode == 0, done.stderr
    assert "ci\\n" in (project / "one.ipynb").read_text() and not list(home.iterdir())


def test_removing_what_is_not_there_removes_nothing(project):
    kernels.install(prefix=project)
    with pytest.raises(EnvironmentNotFound, match="Did you mean 'scalai-ci'?"):
        kernels.remove(["laptop", "cj"])
    assert len(kernels.installed()) == 2
