"""Goals say what must be reached, and when somebody is told that it is not"""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalai_nb.errors import ParameterError
from scalai_nb.goals import Goal, standings
from scalai_nb.pipeline.reading.parameter import source
from scalai_nb.pipeline.showing.goal_lights import target

TEXTS = [">= 0.60 for 3 windows, until >= 0.62", "<=200 for 30 min", "> 1e-3, until > .5", "== 1"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_goal_is_the_text_it_was_written_as(text):
    goal = pickle.loads(pickle.dumps(Goal(text)))
    assert goal == text and eval(source(goal)) == text
    assert vars(goal) == vars(Goal(text))
    assert target(text, "") == target(f"{goal.op} {goal.threshold}", "")


def test_what_is_said_behind_the_comparison():
    goal = Goal("<= 200 for 1.5h, until < 180")
    assert (goal.windows, goal.lasting, goal.until, goal.until.op) == (1, 5400.0, "< 180", "<")
    plain = Goal("<= 200")
    assert (plain.windows, plain.lasting, plain.until) == (1, 0.0, None)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (">= 0.6 for 0 windows", "lasts no time"),
        (">= 0.6 for 0 min", "lasts no time"),
        (">= 0.6 for 3", "is not a goal"),
        (">= 0.6 for 3 windows until >= 0.7", "is not a goal"),
        (">= 0.6, until 0.7", "is not a goal"),
        (">= 0.6, until <= 0.7", "as hard to meet as >= 0.6"),
        (">= 0.6, until >= 0.5", "as hard to meet as >= 0.6"),
        ("> 0.6, until >= 0.6", "as hard to meet as > 0.6"),
        ("<= 0.6, until <= 0.7", "as hard to meet as <= 0.6"),
    ],
)
def test_what_is_no_goal(text, why):
    with pytest.raises(ParameterError, match=why):
        Goal(text)


VALUES = st.lists(st.sampled_from([0.5, 0.6, 0.61, 0.62, 0.7, float("nan")]), max_size=12)


@given(VALUES, st.integers(1, 4))
def test_it_fires_after_so_many_misses_and_until_it_is_whole(values, windows):
    goal = Goal(f">= 0.61 for {windows} windows, until >= 0.62")
    states = [s.state for s in standings(goal, enumerate(values))]
    firing, misses = False, 0
    for value, state in zip(values, states, strict=True):
        if value == value:
            misses = 0 if value >= 0.61 else misses + 1
            firing = value < 0.62 if firing else misses >= windows
        pending = misses and not firing
        assert state == ("firing" if firing else "pending" if pending else "ok")


@given(VALUES)
def test_a_plain_goal_stands_as_it_is_met(values):
    goal, measured = Goal(">= 0.61"), [v for v in values if v == v]
    states = [s.state for s in standings(goal, enumerate(measured))]
    assert states == ["ok" if goal.met(v) else "firing" for v in measured]
