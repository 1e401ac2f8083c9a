"""A cell that prints more than anybody reads: the first and last are shown, a file has it all"""

import json
import random
import re

import pytest
from toy import Project

from scalai_nb.pipeline import outputs as module
from scalai_nb.pipeline.outputs import Kept, Outputs

NOTE = re.compile(r"\n\[(.+) left out here; (.*)\]\n")


def replayed(messages, most: float) -> list[dict]:
    "The outputs of a cell that sends messages"
    outputs = Outputs(most, "the log has all of it")
    for type, content in messages:
        outputs.apply(0, type, content)
    return outputs.cells.get(0, [])


def some_messages(seed: int) -> list:
    "What a cell may send: streams in pieces of any size, displays, a clear"
    rng = random.Random(seed)
    messages = []
    for i in range(rng.choice((3, 300, 3000))):
        if rng.random() < 0.9:
            name = rng.choice(("stdout", "stdout", "stderr"))
            text = f"{i:05}" + "." * rng.choice((1, 50, 900)) + "\n" * (rng.random() < 0.9)
            messages.append(("stream", {"name": name, "text": text}))
        else:
            data = {"text/plain": f"<{i}>" * rng.choice((1, 30, 3000))}
            messages.append(("display_data", {"data": data, "metadata": {}}))
    return messages


def said(outputs) -> str:
    return "".join(o.get("text") or o["data"]["text/plain"] for o in outputs)


@pytest.mark.parametrize("seed", range(40))
def test_the_first_and_the_last_are_kept_in_order(monkeypatch, seed):
    monkeypatch.setattr(module, "_PIECE", 500)
    messages = some_messages(seed)
    whole, most = said(replayed(messages, float("inf"))), 200_000
    kept = said(replayed(messages, most))
    assert len(kept) < most + 2_000
    notes = list(NOTE.finditer(kept))
    pieces = NOTE.split(kept)[::3]
    at = 0
    for piece in pieces:  # in their order
        found = whole.find(piece, at)
        assert found >= 0
        at = found + len(piece)
    assert whole.startswith(pieces[0]) and whole.endswith(pieces[-1])
    assert bool(notes) or kept == whole


def test_little_is_kept_as_it_was():
    messages = [*some_messages(1)[:3], ("clear_output", {"wait": True}), *some_messages(2)[:3]]
    assert replayed(messages, module.MOST) == replayed(messages, float("inf"))


def test_a_display_that_is_too_long_is_named_with_its_size():
    data = {"data": {"text/html": "z" * 30_000_000}, "metadata": {}}
    [note] = replayed([("display_data", data)], module.MOST)
    assert NOTE.fullmatch(note["text"])[1] == "30 MB"


def test_a_progress_bar_is_one_line_however_long_it_runs():
    kept = Kept(most=1e6)
    for i in range(200_000):
        kept.print(f"\r{i} rows", "stderr")
    assert kept.outputs[0]["text"] == "\r199999 rows"[1:]


def test_a_loud_step_leaves_one_file_with_the_whole_and_a_report_that_opens(tmp_path):
    project = Project(tmp_path)
    words = "from scalai_nb.pipeline import In, Out"
    project.step(
        "00_loud", words, "for i in range(110_000): print(f'{i:099d}')", "print('z' * 9**7)"
    )
    assert project.said("run", "toy").returncode == 0
    run = project.root / ".scalai/runs" / project.show()["id"]
    large = [f.name for f in run.rglob("*") if f.is_file() and f.stat().st_size > 10e6]
    assert large == ["00_loud.outputs.jsonl"]
    cells = json.loads((run / "00_loud.ipynb").read_text())["cells"]
    texts = ["".join(o["text"]) for o in cells[-2]["outputs"]]
    assert texts[0].startswith("0" * 99 + "\n") and texts[-1].endswith(f"{109_999:099d}\n")
    note = NOTE.fullmatch(texts[len(texts) // 2]) or next(filter(None, map(NOTE.fullmatch, texts)))
    command = note[2].removesuffix(" prints all of it").split()
    whole = project.scalai(*command[1:])
    assert len(whole.stdout) == 110_000 * 100 + 9**7 + 1
    refused = project.said("show", "latest", "--whole")
    assert refused.returncode == 2 and "name one" in refused.stderr
