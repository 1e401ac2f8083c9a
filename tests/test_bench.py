"The benches run, in small; what they measure is nobody's business here"

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scalai_nb.commands.terminal import console
from scalai_nb.errors import ParameterError, WorkFailed
from scalai_nb.bench import hotpath
from scalai_nb.bench import learning as training
from scalai_nb.bench.compare import Case, Figure, chosen, compare, measure, timed
from scalai_nb.bench.data import contracts
from scalai_nb.bench.data.cases import CASES as DATA
from scalai_nb.bench.watching import watched
from scalai_nb.bench.watching.detectors import DETECTORS, Peers, stretch
from scalai_nb.bench.watching.replays import delays, quiet_years

BROKEN = Case("Fails", lambda scale, folder: None, lambda data: lambda: 1 / 0, {}, {})
QUICK = Case(
    "A sum",
    lambda scale, folder: range(int(1000 * scale)),
    lambda x: lambda: sum(x),
    {"max": lambda x: lambda: max(x), "gone": lambda x: __import__("no_such_peer")},
    {"max": 1},
)
CASES = {"quick": QUICK, "broken": BROKEN}


def bandwidth():
    return 1e9


def machine():
    return "none"


def test_a_peer_that_is_not_installed_is_left_out(capsys):
    seen = measure(QUICK, 1, 2)
    assert (
        list(seen["ratios"]) == ["max"]
        and "gone is left out: No module named 'no_such_peer'" in capsys.readouterr().err
    )


def test_the_first_round_warms_up_and_the_median_counts():
    seen = measure(QUICK, 1, 3)
    assert (
        len(seen["all_seconds"]["scalai"]) == 4
        and seen["seconds"]["scalai"] == sorted(seen["all_seconds"]["scalai"][1:])[1]
    )


def test_memory_is_what_the_work_adds_at_most():
    (size, _, grown) = timed(lambda: len(bytearray(b"x") * 200_000_000))
    assert size == 200_000_000 and 190_000_000 < grown < 300_000_000


def test_a_case_that_fails_does_not_cost_the_others(monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", __file__.rpartition("/")[0])
    seen = compare("test_bench", ["broken", "quick"], scale=0.5, rounds=1)
    assert (
        seen["failed"] == ["broken"]
        and list(seen["cases"]) == ["quick"]
        and "ZeroDivisionError" in capfd.readouterr().err
    )


def test_heavy_cases_run_only_by_name():
    assert "scale" not in chosen(hotpath.CASES) and chosen(hotpath.CASES, ["scale"]) == ["scale"]
    with pytest.raises(ParameterError, match="known: drift, evaluation, .*Did you mean 'summary'"):
        chosen(hotpath.CASES, ["summmary"])
    with pytest.raises(ParameterError, match="must be positive"):
        compare("test_bench", ["quick"], scale=0)


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("name", chosen(hotpath.CASES))
def test_every_case_of_the_hot_path_runs_and_keeps_its_bounds(name):
    "All figures but time and memory, which tell nothing at this size"
    seen = measure(hotpath.CASES[name], 0.004, 1)
    assert seen["seconds"]["scalai"] > 0 and seen["bytes"] > 0
    assert [
        f
        for f in seen["figures"]
        if not f["met"] and not f["name"].startswith(("seconds", "extra memory", "peak memory"))
    ] == []


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("name", chosen(training.CASES))
def test_every_case_of_training_runs_and_keeps_its_bounds(name):
    "All figures but memory, which tells nothing at this size"
    seen = measure(training.CASES[name], 0.004, 1)
    assert seen["seconds"]["scalai"] > 0 and len(seen["ratios"]) == len(training.CASES[name].peers)
    assert [f for f in seen["figures"] if not f["met"] and "memory" not in f["name"]] == []


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("name", DATA)
def test_every_case_of_the_data_layer_runs_and_keeps_its_bounds(name):
    "All figures but times, which tell nothing at this size"
    seen = measure(DATA[name], 0.004, 1)
    bounds = [f for f in seen["figures"] if f["name"].startswith(("bytes", "rules", "rows"))]
    assert seen["seconds"]["scalai"] > 0 and all(f["met"] for f in bounds)


def test_alarms_are_compared_at_the_smallest_scale(capfd):
    "Ours and a rule; who is not installed is left out and says so"
    some = ["scalai", "PSI > 0.1", "p < 0.05 for each feature"]
    figures = watched.watching(0.002, 1, names=some)
    quiet = {name: figures["quiet"][name]["with an alarm"] for name in some}
    assert quiet == {"scalai": 0, "PSI > 0.1": 1, "p < 0.05 for each feature": 1}
    assert figures["found"]["0.5 in 200"]["scalai"] <= 4
    assert len(figures["cases"]["memory"]["held"]) == 10
    console().print(watched.show(figures))
    assert "years with an alarm" in capfd.readouterr().out
    with pytest.raises(ParameterError, match="Did you mean 'memory'"):
        watched.watching(parts=["memry"])
    with pytest.raises(ParameterError, match="Did you mean 'frouros, CUSUM'"):
        watched.watching(names=["frouros, CUSUMS"])


def test_a_detector_that_is_not_installed_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(contracts, "checkout", lambda: tmp_path)
    alone = {"NannyML, univariate": DETECTORS["NannyML, univariate"]}
    with Peers() as peers:
        seen = quiet_years(1, peers, features=2, windows=2, detectors=alone)
        assert "environments/peers nannyml" in seen["NannyML, univariate"]["missing"]
        assert delays(1, peers, 0.5, 200, detectors=alone) == {}


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("name", DETECTORS)
def test_each_detector_finds_what_nobody_can_miss(name):
    data = stretch(np.random.default_rng(0), 2, 200, 4, reference=2_000, shift=5.0, since=2)
    with Peers() as peers:
        try:
            found = DETECTORS[name].decide(data, peers)
        except ImportError as e:
            pytest.skip(f"a peer of the bench: {e}")
    assert found[2:, 0].any()


def test_what_a_case_started_ends_with_it_even_if_it_fails():
    ended = []
    for case in (QUICK, BROKEN):
        try:
            measure(replace(case, close=ended.append), 1, 1)
        except ZeroDivisionError:
            assert case is BROKEN
    assert ended == [range(1000), None]


def test_a_peer_apart_works_when_told_and_says_when_it_has_ended(tmp_path, monkeypatch):
    "A stand-in for a peer: it answers twice, then fails"
    monkeypatch.setattr(contracts, "checkout", lambda: tmp_path)
    with pytest.raises(ImportError, match="run environments/peers toy"):
        contracts.Peer("toy")
    python = tmp_path / ".services" / "peer-toy" / "bin" / "python"
    script = tmp_path / "environments" / "peers.d" / "check_toy.py"
    for folder in (python.parent, script.parent):
        folder.mkdir(parents=True)
    python.symlink_to(sys.executable)
    script.write_text("import sys\nprint(0, flush=True); input(); print(int(sys.argv[1]) + 1)\n")
    peer = contracts.Peer("toy", "41")
    assert peer.work() == 42
    with pytest.raises(WorkFailed, match="toy has failed"):
        peer.answer()
    peer.close()
    assert peer.process.returncode == 0


def test_the_command_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    from scalai_nb.cli import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="^0$"):
        main(["bench", "hotpath", "evaluation", "--scale", "0.001", "--rounds", "1", "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(
        (tmp_path / ".scalai/bench/hotpath.json").read_text()
    )


def test_a_figure_knows_whether_it_is_met():
    assert Figure("x", 1, 1).met and not Figure("x", 1.1, 1).met


def test_without_a_card_the_command_says_what_it_takes(capsys):
    from scalai_nb.cli import main

    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a CUDA device: scalai bench gpu runs")
    with pytest.raises(SystemExit):
        main(["bench", "gpu"])
    assert re.search("no CUDA device here|scalai-nb.gpu.", capsys.readouterr().err)
