"""No process of a run outlives it, whatever is killed and when; a service loses nothing by it"""

import pytest
from campaigns import services
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


@pytest.mark.slow
def test_a_service_that_is_killed_has_each_answer_in_the_lake_once(tmp_path):
    found = services.campaign(6, 5, seed=3, home=tmp_path)
    print(found.table())
    kills = [n for what, n in found.figures.items() if what.startswith("kills")]
    assert sum(kills) == 6 and all(kills) and found.figures["rows answered"] > 100
    assert not found.wrong, found.table()


@pytest.mark.slow
def test_two_services_of_one_name_share_a_lake(tmp_path):
    answered, logged, truths = services.shared(tmp_path, rounds=2)
    assert logged == answered and len(answered) > 100
    assert set(truths) <= set(answered) and set(truths.values()) == {1}


@pytest.mark.campaign
def test_a_service_under_two_hundred_kills_and_a_hundred_moves(tmp_path):
    found = services.campaign(200, 100, seed=13, home=tmp_path)
    print(found.table())
    assert not found.wrong, found.table()


@pytest.mark.campaign
def test_a_hundred_kills():
    assert not [done for done in campaign(100, seed=12) if done.wrong]
