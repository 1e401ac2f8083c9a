"""No process of a run outlives it, whatever is killed and when"""

import pytest
from campaigns.kills import KINDS, attempt, campaign, data, project


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "The data of a run that nobody disturbs, which leaves no process either"
    calm = project(tmp_path_factory.mktemp("calm"))
    assert calm.scalai("run", "toy").returncode == 0
    return data(calm)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["runner", "fork server", "child"])
def test_a_kill_leaves_nothing_behind(kind, undisturbed):
    done = attempt(KINDS.index(kind), undisturbed, (kind,))
    assert done.hit and not done.wrong


@pytest.mark.campaign
def test_a_hundred_kills():
    assert not [done for done in campaign(100, seed=12) if done.wrong]
