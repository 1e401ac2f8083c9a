"""Model versions in Git through DVC: the real DVC takes what is written without it for its own

Old models come back byte for byte.
"""

import os
import shutil
import subprocess
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import tool
from sklearn.linear_model import LogisticRegression

from scalai_nb.errors import Conflict, ModelMismatch, ModelNotFound, ParameterError
from scalai_nb.learn.features.transform import Transform
from scalai_nb.models.registry.dvc import contents, folder_md5, track
from scalai_nb.models.package.package import Model, package
from scalai_nb.models.registry.registry import ModelVersion

HOURS = xr.Dataset({"hour": ("row", np.arange(24.0))})


def late_after(hour):
    t = Transform(["hour"]).fit(HOURS)
    return package(
        t, LogisticRegression().fit(t.transform(HOURS).values, HOURS.hour > hour), name="late"
    )


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    "Folders of two packages that differ"
    folder = tmp_path_factory.mktemp("packages")
    return [late_after(hour).save(folder / str(hour)) for hour in (12, 18)]


def run(folder, *command):
    home = Path(folder).parent / "home"
    env = {
        **os.environ,
        "DVC_NO_ANALYTICS": "1",
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    done = subprocess.run(
        [str(c) for c in command], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture
def repo(tmp_path, monkeypatch):
    "A Git repository with the folder that `dvc init` makes"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/.config"))
    repo = tmp_path / "repo"
    (repo / ".dvc").mkdir(parents=True)
    run(repo, "git", "init", "-q", "-b", "main")
    for key, value in (("user.name", "Ada"), ("user.email", "ada@example.org")):
        run(repo, "git", "config", key, value)
    return repo


@pytest.mark.slow
def test_the_real_dvc_goes_back_and_forth(repo, packages, tmp_path):
    dvc, target = tool("dvc") / "dvc", repo / "models/late"
    shutil.rmtree(repo / ".dvc")
    run(repo, dvc, "init", "-q")
    run(repo, dvc, "remote", "add", "-q", "-d", "store", tmp_path / "store")
    for i, source in enumerate(packages):
        track(source, target)
        assert run(repo, dvc, "status") == "Data and pipelines are up to date."
        run(repo, "git", "add", ".")
        run(repo, "git", "commit", "-q", "-m", f"model {i}")
        assert sorted(run(repo, "git", "ls-files", "models").split()) == [
            "models/.gitignore",
            "models/late.dvc",
        ] and not run(repo, "git", "status", "--short")
    run(repo, dvc, "push", "-q", "-A")
    shutil.rmtree(repo / ".dvc/cache")
    run(repo, dvc, "pull", "-q")  # what lies in the remote is whole
    run(repo, "git", "checkout", "-q", "HEAD~1")
    run(repo, dvc, "pull", "-q")
    assert contents(target) == contents(packages[0]) != contents(packages[1])
    expected = Model.load(packages[0]).predict(HOURS)
    assert Model.load(target).predict(HOURS).identical(expected)
    run(repo, "git", "checkout", "-q", "main")
    run(repo, dvc, "checkout", "-q")
    assert contents(target) == contents(packages[1])
    run(
        repo, dvc, "add", "-q", "models/late"
    )  # DVC itself writes the same pointer, and keeps what it says of the model
    assert not run(repo, "git", "status", "--short")
    (target / "card.md").write_text("another")
    assert "modified" in run(repo, dvc, "status")  # it does look


def test_what_is_written(repo, packages):
    pointer = track(packages[0], repo / "models/late")
    files = contents(packages[0])
    size = sum((packages[0] / name).stat().st_size for name in files)
    lines = pointer.read_text().splitlines()
    assert lines[0] == "meta:" and "  model: late" in lines
    assert lines[-6:] == [
        "outs:",
        f"- md5: {folder_md5(files)}",
        f"  size: {size}",
        f"  nfiles: {len(files)}",
        "  hash: md5",
        "  path: late",
    ]
    assert (repo / "models/.gitignore").read_text() == "/late\n" and contents(
        repo / "models/late"
    ) == files
    cache = repo / ".dvc/cache/files/md5"
    stored = {p.parent.name + p.name: p for p in cache.rglob("*") if p.is_file()}
    assert set(stored) == {*files.values(), folder_md5(files)}
    assert all(p.stat().st_mode & 0o777 == 0o444 for p in stored.values())
    assert sorted(p.name for p in (repo / "models").iterdir()) == [".gitignore", "late", "late.dvc"]


def test_twice_changes_nothing(repo, packages):
    pointer = track(packages[0], repo / "models/late")
    before = (
        {p: p.stat().st_mtime_ns for p in (repo / "models/late").iterdir()},
        pointer.read_text(),
    )
    assert track(packages[0], repo / "models/late") == pointer
    assert before == (
        {p: p.stat().st_mtime_ns for p in (repo / "models/late").iterdir()},
        pointer.read_text(),
    )
    assert (repo / "models/.gitignore").read_text() == "/late\n"


def test_a_registered_version_is_named(repo, packages, tmp_path, monkeypatch):
    path = shutil.copytree(packages[0], tmp_path / "registry/1")
    v = ModelVersion(
        "late-flight",
        1,
        datetime.now(UTC),
        path,
        {},
        {},
        ("champion",),
        sha256((path / "manifest.json").read_bytes()).hexdigest(),
    )
    monkeypatch.chdir(repo)
    pointer = track(v)
    assert (
        pointer == repo / "models/late-flight.dvc"
        and f"meta:\n  model: late-flight\n  version: 1\n  digest: {v.digest}\nouts:"
        in pointer.read_text()
    )
    shutil.rmtree(path)
    shutil.copytree(packages[1], path)
    with pytest.raises(ModelMismatch, match="not the package that was registered as late-flight@1"):
        track(v)


def test_a_cache_elsewhere(repo, packages, tmp_path):
    (repo / ".dvc/config").write_text(
        "[core]\n"
        "    remote = x\n"
        "['remote \"x\"']\n"
        "    url = /srv/x\n"
        "[cache]\n"
        "    dir = ../../shared\n"
    )
    track(packages[0], repo / "models/late")
    assert (
        len([p for p in (tmp_path / "shared/files/md5").rglob("*") if p.is_file()])
        == len(contents(packages[0])) + 1
    )
    assert not (repo / ".dvc/cache").exists()
    (repo / ".dvc/config.local").write_text(f"[cache]\n    dir = {tmp_path}/mine\n")
    track(packages[1], repo / "models/late")
    assert (tmp_path / "mine/files/md5").is_dir()


def test_a_damaged_cache_is_mended(repo, packages):
    track(packages[0], repo / "models/late")
    files = contents(packages[0])
    damaged = repo / ".dvc/cache/files/md5" / files["card.md"][:2] / files["card.md"][2:]
    damaged.chmod(0o644)
    damaged.write_text("lost")
    track(packages[0], repo / "models/late")
    assert damaged.read_bytes() == (packages[0] / "card.md").read_bytes()


def test_where_it_cannot_be(tmp_path, packages, repo):
    with pytest.raises(ParameterError, match=r"in no Git repository; run: git init && dvc init"):
        track(packages[0], tmp_path / "models/late")
    for place in (".dvc/late", ".git/late"):
        with pytest.raises(ParameterError, match="choose another place"):
            track(packages[0], repo / place)
    with pytest.raises(ParameterError, match="cannot name a folder"):
        track(packages[0], repo / "late [1]")
    (repo / ".dvc").rmdir()
    with pytest.raises(ParameterError, match="in no DVC repository; run: dvc init"):
        track(packages[0], repo / "models/late")
    assert [p.name for p in repo.iterdir()] == [".git"]


def test_what_is_no_package(repo, tmp_path, packages):
    with pytest.raises(ModelNotFound, match="no model package"):
        track(tmp_path / "nothing", repo / "models/late")
    broken = shutil.copytree(packages[0], tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"")
    with pytest.raises(ModelMismatch, match="model.onnx"):
        track(broken, repo / "models/late")
    assert not (repo / "models").exists()


def test_nothing_is_overwritten(repo, packages):
    target, pointer = repo / "models/late", repo / "models/late.dvc"
    target.mkdir(parents=True)
    (target / "mine.txt").write_text("keep")
    with pytest.raises(Conflict, match="DVC does not track it"):
        track(packages[0], target)
    run(repo, "git", "add", "models")
    with pytest.raises(Conflict, match="git rm -r --cached"):
        track(packages[0], target)
    run(repo, "git", "rm", "-rq", "--cached", "models")
    shutil.rmtree(target)
    track(packages[0], target)
    (target / "card.md").write_text("changed by hand")
    with pytest.raises(Conflict, match="was changed since late.dvc was written; run: dvc checkout"):
        track(packages[1], target)
    assert (target / "card.md").read_text() == "changed by hand"
    for text in ("outs: [", "outs:\n- md5: a\n  path: other\n", "deps:\n- path: x\n", "outs: []\n"):
        pointer.write_text(text)
        with pytest.raises(Conflict, match="not a pointer to late"):
            track(packages[1], target)


def test_folders_in_the_folder(tmp_path):
    "What DVC 3.67 calls this folder"
    for name, text in {"a.txt": "abc\n", "empty": "", "sub/é.json": "héllo\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert folder_md5(contents(tmp_path)) == "c27988ff4b6be06c791fd7dca85d49cc.dir"


def test_a_link_is_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    with pytest.raises(ParameterError, match="is a link"):
        contents(tmp_path)


def test_a_crash_leaves_a_pointer_that_can_be_followed(repo, packages, monkeypatch):
    from scalai_nb.models.registry import dvc as module

    pointer = track(packages[0], repo / "models/late")
    before = pointer.read_text()
    monkeypatch.setattr(
        module, "_replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        track(packages[1], repo / "models/late")
    assert pointer.read_text() == before and contents(repo / "models/late") == contents(packages[0])
    monkeypatch.undo()
    track(packages[1], repo / "models/late")
    assert contents(repo / "models/late") == contents(packages[1])
