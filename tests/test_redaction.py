"""No secret leaves: not in an usual spelling, not in pieces, not through any exit of a run"""

import base64
import html
import json
import random
import shlex
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from toy import Project, statuses

from scalai_nb.redaction import MASK, SHORTEST, Pieces, Secrets

SECRETS = st.text(min_size=SHORTEST, max_size=40).filter(
    lambda s: len(s.strip()) >= SHORTEST and s.isprintable() and MASK not in s
)
AROUND = st.text(st.characters(codec="utf-8"), max_size=9)
SPELLED = {
    "plain": lambda s: s,
    "json": lambda s: json.dumps(s),
    "json in json": lambda s: json.dumps(json.dumps({"k": s})),
    "repr": repr,
    "repr of bytes": lambda s: repr(s.encode()),
    "html": html.escape,
    "address": lambda s: urllib.parse.quote(s, safe=""),
    "form": lambda s: urllib.parse.urlencode({"k": s}),
    "hex": lambda s: s.encode().hex(),
    "HEX": lambda s: s.encode().hex().upper(),
    "shell": shlex.quote,
}


def core(text: str) -> str:
    "What of base64 cannot be there by chance: without the ends, which depend on the neighbours"
    return text.rstrip("=")[4:-4]


@pytest.mark.parametrize("kind", SPELLED)
@given(secret=SECRETS, before=AROUND, after=AROUND)
@example(secret='it\'s a "horse"', before="", after="")
@example(secret="päss/wörd+&<>", before="x", after="y")
def test_a_spelling_is_scrubbed(kind, secret, before, after):
    told = SPELLED[kind](secret)
    scrubbed = Secrets([secret]).scrub(before + told + after)
    assert told not in scrubbed and MASK in scrubbed


@given(secret=SECRETS, before=st.binary(max_size=9), after=st.binary(max_size=9))
def test_base64_is_scrubbed_whatever_stands_around(secret, before, after):
    whole = before + secret.encode() + after
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        scrubbed = Secrets([secret]).scrub(encode(whole).decode())
        assert MASK in scrubbed
        assert core(encode(secret.encode()).decode()) not in scrubbed


@given(secret=SECRETS, around=AROUND, cuts=st.lists(st.integers(0, 60), max_size=5))
def test_pieces_say_what_the_whole_says(secret, around, cuts):
    text = around + secret + around + secret[: len(secret) // 2]
    ends = [*sorted(min(c, len(text)) for c in cuts), len(text)]
    pieces = Pieces(Secrets([secret]))
    told = [pieces.feed(text[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    told = "".join(told) + pieces.flush()
    assert secret not in told and told.replace(MASK, "") == Secrets([secret]).scrub(text).replace(
        MASK, ""
    )


@given(text=st.text(max_size=200))
def test_what_holds_no_secret_is_left_alone(text):
    secrets = Secrets(["this is not in it, surely"])
    assert secrets.scrub(text) == text and secrets.redact({"a": [text, 1, None]}) == {
        "a": [text, 1, None]
    }


@pytest.mark.parametrize("secret", ["display_data", "completed"])
def test_the_protocol_is_left_alone(tmp_path, database, secret):
    project = leaking(tmp_path, secret, database=database)
    done = project.said("run", "toy", "--json", TOKEN=secret)
    assert json.loads(done.stdout)["status"] == "completed"
    assert MASK in project.said("show", "latest", "tell").stdout


# ---- through every exit of a run

CONTRACT = "from scalai_nb.pipeline import Out, Secret\n"
EXITS = {
    "printed": "print(told)",
    "to stderr": "import sys; print(told, file=sys.stderr)",
    "in two writes": (
        "import sys, time\n"
        "sys.stdout.write(told[:9]); sys.stdout.flush(); time.sleep(0.3)\n"
        "sys.stdout.write(told[9:]); sys.stdout.flush()"
    ),
    "shown": (
        "from IPython.display import HTML, JSON, display\ndisplay(HTML(told), JSON({told: told}))"
    ),
    "a result": "{'it is': told}",
    "past the cells": "import os\nos.write(1, told.encode()); os.write(2, told.encode())",
    "by a child": "import subprocess\nsubprocess.run(['sh', '-c', 'echo \"$1\" >&2', '-', told])",
    "half by half past the cells": "os.write(2, told[:9].encode()); os.write(2, told[9:].encode())",
    "a warning": "import warnings; warnings.warn(told)",
    "a log": "import logging; logging.error(told)",
    "tracked": (
        "from scalai_nb.environment import environment\n"
        "from scalai_nb.tracking.outbox import record\n"
        "from scalai_nb.tracking.record import Record\n"
        "facts = Record('mine', told[:200], params={told[:200]: told}, tags={'k': told})\n"
        "record(environment(), facts)"
    ),
    "a checkpoint": (
        "from scalai_nb.pipeline import checkpoint\nlen(checkpoint('c', lambda: [told]))"
    ),
    "data": (
        "import numpy as np, xarray as xr\n"
        "from scalai_nb.pipeline import write\n"
        "x = xr.DataArray(np.arange(3), dims='row', attrs={'from': told, 'n': 3})\n"
        "version = write(a, xr.Dataset({'x': x}, attrs={'all': [told]}), told)"
    ),
}


def leaking(folder, told: str, *last: str, database: Path | None = None) -> Project:
    "A step that tells its secret through every exit, and one that was given none"
    project = Project(folder, "cluster = none\ntrackers = mlflow\n", database)
    project.step(
        "00_tell",
        CONTRACT + 'token: Secret = "TOKEN"\na: Out = "a"',
        f"told = {told}" if told.startswith("spell") else "told = Secret(token).value",
        *EXITS.values(),
        *last,
    )
    project.step(
        "01_other",
        CONTRACT,
        "import os\nprint('not given' if 'TOKEN' not in os.environ else 'given')",
    )
    return project


SPELL = (
    "import base64, html, json, urllib.parse\n"
    "s = Secret(token).value\n"
    "told = ' '.join([s, json.dumps({'k': s}), repr(s), html.escape(s), urllib.parse.quote(s),"
    " urllib.parse.quote_plus(s), s.encode().hex(), s.encode().hex().upper(),"
    " *(base64.b64encode(b'x' * n + s.encode() + b'y').decode() for n in range(3))])\n"
)


def hidden(secret: str) -> list[bytes]:
    "What a byte search looks for"
    spelled = [spell(secret) for spell in SPELLED.values()]
    spelled += [
        core(base64.b64encode(b"x" * n + secret.encode() + b"y").decode()[2:]) for n in range(3)
    ]
    spelled += [secret[:9] + "\n" + secret[9:]]
    return [text.encode() for text in spelled]


def found(project: Project, secret: str, *printed: str) -> list[tuple[str, bytes]]:
    "Where a byte search of all files, and of what was printed, finds the secret"
    files = project.files() | {f"terminal {i}": text.encode() for i, text in enumerate(printed)}
    return [(name, text) for name, data in files.items() for text in hidden(secret) if text in data]


def drawn(seed: int) -> str:
    "A secret of letters, signs, spaces and what is not ASCII; some with a second line"
    signs = "abcXYZ019 -_.:;/+&<>'\"\\%€ßπ字"
    rng = random.Random(seed)
    word = "".join(rng.choice(signs) for _ in range(rng.randint(10, 40))).strip()
    return f"s{word}\n{word[::-1]}e" if seed % 3 == 0 else f"s{word}e"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_secret_leaves_through_no_exit(tmp_path, database, seed):
    secret = drawn(seed)
    raises = "raise RuntimeError(f'401 for https://x/?key={told}')"
    project = leaking(tmp_path, "spelled", raises, database=database)
    path = project.root / "pipelines/toy/00_tell.ipynb"
    path.write_text(path.read_text().replace('"told = spelled"', json.dumps(SPELL)))
    done = project.scalai("run", "toy", "--plain", TOKEN=secret)
    shown = project.said("show", "latest", "tell", TOKEN=secret)
    record = project.show()
    assert statuses(record) == {"tell": ("failed", "cell_error"), "other": ("completed", None)}
    assert "not given" in project.said("show", "latest", "other").stdout
    assert MASK in shown.stdout and "401" in shown.stdout
    sent = project.said("runs", "send", TOKEN=secret)
    told = [done.stdout, done.stderr, shown.stdout, shown.stderr, sent.stdout, json.dumps(record)]
    assert not found(project, secret, *told)


@pytest.mark.parametrize(
    "secret, why",
    [
        ("1", "has fewer than 8 characters"),
        ("cell", "has fewer than 8 characters"),
        ("       \n", "has fewer than 8 characters"),
        ("not given", "stands in 01_other.ipynb"),
        ("from scalai_nb", "stands in 00_tell.ipynb"),
    ],
)
def test_what_cannot_be_scrubbed_is_refused_before_the_run(tmp_path, secret, why):
    project = leaking(tmp_path, "")
    before = project.files()
    done = project.said("run", "toy", TOKEN=secret)
    assert done.returncode == 2 and why in done.stderr and "TOKEN" in done.stderr
    assert project.files() == before


def test_a_parameter_that_holds_the_secret_is_refused(tmp_path):
    project = leaking(tmp_path, "")
    project.step("02_plain", CONTRACT + 'key: str = ""', "len(key)")
    done = project.said("run", "toy", "-p", "plain.key=correct horse", TOKEN="correct horse")
    assert done.returncode == 2 and "in a parameter of it" in done.stderr
    assert "correct horse" not in done.stderr
