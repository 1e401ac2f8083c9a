"""What makes a step stale beside its code: files by their content, packages, the kernel"""

import os
import threading
from importlib import metadata

import pytest
from toy import notebook

from scalai_nb.pipeline.reading import surroundings
from scalai_nb.pipeline.reading.surroundings import Memory, content
from scalai_nb.pipeline.staleness import key
from scalai_nb.pipeline.step import Step

CONTRACT = 'from pathlib import Path\ntable: Path = Path("data/table.csv")'


@pytest.fixture
def step(tmp_path):
    "A step that reads a file which its contract names; call it to read the notebook again"
    (tmp_path / "data").mkdir()
    (tmp_path / "data/table.csv").write_text("a,b\n1,2\n")
    path = tmp_path / "01_read.ipynb"

    def load(contract: str = CONTRACT, code: str = "import pandas as pd", **kw) -> Step:
        return Step.load(notebook(path, contract, code, **kw))

    load.folder = tmp_path / "data"
    return load


def rewritten(folder):
    (folder / "table.csv").write_text("a,b\n1,3\n")


def replaced(folder):
    (folder / "new").write_text("a,b\n1,9\n")
    os.utime(folder / "new", (1, 1))
    (folder / "new").rename(folder / "table.csv")


def rewritten_at_the_same_time(folder):
    seen = (folder / "table.csv").stat()
    rewritten(folder)
    os.utime(folder / "table.csv", ns=(seen.st_atime_ns, seen.st_mtime_ns))


def removed(folder):
    (folder / "table.csv").unlink()


def a_dangling_link(folder):
    (folder / "table.csv").unlink()
    (folder / "table.csv").symlink_to("nowhere")


def a_pipe(folder):
    (folder / "table.csv").unlink()
    os.mkfifo(folder / "table.csv")


def a_folder(folder):
    (folder / "table.csv").unlink()
    (folder / "table.csv").mkdir()


@pytest.mark.parametrize(
    "change",
    [
        rewritten,
        replaced,
        rewritten_at_the_same_time,
        removed,
        a_dangling_link,
        a_pipe,
        a_folder,
    ],
)
def test_another_content_is_told(step, change):
    memory = Memory()
    before = key(step(), {}, memory)
    change(step.folder)
    reasons = before.changes(key(step(), {}, memory))
    assert reasons == ["content of the file of parameter table"]


def touched(folder):
    os.utime(folder / "table.csv")


def copied_back(folder):
    text = (folder / "table.csv").read_text()
    removed(folder)
    (folder / "table.csv").write_text(text)


def a_link_to_the_same(folder):
    (folder / "table.csv").rename(folder / "moved.csv")
    (folder / "table.csv").symlink_to("moved.csv")


@pytest.mark.parametrize("change", [touched, copied_back, a_link_to_the_same])
def test_the_same_content_is_the_same(step, change):
    memory = Memory()
    before = key(step(), {}, memory)
    change(step.folder)
    assert before.changes(key(step(), {}, memory)) == []


@pytest.mark.parametrize("name", ["other.csv", "deep/er/x.csv", ".hidden"])
def test_a_file_in_a_folder_counts(step, name):
    contract = CONTRACT.replace("data/table.csv", "data")
    before = key(step(contract), {})
    path = step.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("more")
    assert before.changes(key(step(contract), {})) == ["content of the file of parameter table"]


def test_a_large_file_is_read_once(step, tmp_path, monkeypatch):
    path, kept = step.folder / "table.csv", tmp_path / "memory.json"
    monkeypatch.setattr(surroundings, "_YOUNG", -1)
    was, first = path.read_bytes(), content(path, memory := Memory(kept))
    memory.save()
    with monkeypatch.context() as patched:
        patched.delattr("hashlib.file_digest")
        assert content(path, Memory(kept)) == first
    path.unlink()
    memory.put("another", [], 1)
    memory.save()
    assert str(path) not in kept.read_text() and "another" in kept.read_text()
    path.write_bytes(was)
    kept.write_text("rubbish")
    assert content(path, Memory(kept)) == first


@pytest.mark.parametrize("now, said", [("99.0", "99.0"), (None, "none")])
def test_a_package_is_compared_by_its_version(step, monkeypatch, now, said, tmp_path):
    before = key(step(), {})
    installed = metadata.version("pandas")
    assert before.parts["packages"] == {"pandas": installed}
    if now is None:
        monkeypatch.setattr(metadata, "packages_distributions", dict)
    else:
        about = tmp_path / "site" / f"pandas-{now}.dist-info" / "METADATA"
        about.parent.mkdir(parents=True)
        about.write_text(f"Metadata-Version: 2.1\nName: pandas\nVersion: {now}\n\nVersion: 1\n")
        monkeypatch.syspath_prepend(tmp_path / "site")
    reasons = before.changes(key(step(), {}))
    assert reasons == [f"package pandas {installed} -> {said}"]


def test_what_own_modules_import_counts(step, tmp_path):
    (tmp_path / "helper.py").write_text("import sklearn.linear_model\n")
    found = key(step(code="import helper, json"), {}).parts["packages"]
    assert list(found) == ["scikit-learn"]


def test_another_kernel_is_another_step(step):
    before = key(step(), {})
    assert before.changes(key(step(kernel="other"), {})) == ["kernel python3 -> other"]


def test_a_cache_of_an_earlier_version_is_still_good(step):
    now = key(step(), {})
    earlier = {k: v for k, v in now.parts.items() if k not in ("files", "packages", "kernel")}
    assert type(now)(earlier).changes(now) == []


def test_what_two_processes_have_found_is_kept_of_both(tmp_path):
    "Two runs at once: whoever writes last has read the file before the other wrote it"
    kept = tmp_path / "memory.json"
    first, second = Memory(kept), Memory(kept)
    for memory, name in (first, "one"), (second, "two"), (first, "three"):
        memory.put(name, [], name)
        memory.save()
    assert sorted(Memory(kept)._facts) == ["one", "three", "two"]


def test_plans_that_are_made_at_the_same_moment(tmp_path):
    "Each tab and each notebook asks for one, and what they have found is kept by all of them"
    memory = Memory(tmp_path / "memory.json")
    failed = []

    def find(thread: int) -> None:
        try:
            for i in range(80):
                memory.put(f"{thread} {i}", [i], "found")
                memory.save()
        except RuntimeError as e:
            failed.append(e)

    threads = [threading.Thread(target=find, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memory.save()
    assert not failed
    assert len(Memory(memory.path)._facts) == 320
