import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.config import load_config, parse_config
from fedmef_dist.scaling.points import Point, parse_numbers, plan_study


def config(clients=100, cohort=10):
    return parse_config({"federation": {"clients": clients, "clients_per_round": cohort}}, "here")


def test_the_three_questions_share_their_points():
    study = plan_study(config(), [1, 2, 4], [5, 100, 1000])
    assert study.strong == (Point(1, 100, 10), Point(2, 100, 10), Point(4, 100, 10))
    assert study.weak == (Point(1, 100, 10), Point(2, 100, 20), Point(4, 100, 40))
    assert study.population == (Point(1, 5, 5), Point(1, 100, 10), Point(1, 1000, 10))
    assert len(study.points) == 7


def test_weak_scaling_starts_at_the_fewest_ranks():
    assert [point.cohort for point in plan_study(config(), [2, 6], []).weak] == [10, 30]


def test_a_population_that_is_too_small_for_weak_scaling_is_refused():
    assert plan_study(config(clients=40), [1, 4], [])
    with pytest.raises(UserError, match=r"needs 40 clients a round, federation.clients is 39\nwhere: --ranks\nmend: "):
        plan_study(config(clients=39), [1, 4], [])


def test_a_points_run_is_the_configuration_with_its_sizes(tmp_path):
    (tmp_path / "c.yaml").write_text("method: {name: fedavg}\n")
    point = Point(2, 300, 30)
    changed = load_config(tmp_path / "c.yaml", point.overrides(5))
    assert changed.federation.clients == 300
    assert changed.federation.clients_per_round == 30
    assert changed.federation.rounds == 6
    assert changed.tracking.timeline
    assert changed.name == point.name == "ranks-2_clients-300_cohort-30"
    assert changed.method.name == "fedavg"


def test_numbers_come_sorted_and_once():
    assert parse_numbers("4, 1,2,1", "--ranks") == [1, 2, 4]
    assert parse_numbers("", "--clients") == []


@pytest.mark.parametrize("text", ["0", "-1", "1,x", "1.5", "1,,2", "1,", "²", "9" * 5000])
def test_what_is_no_list_of_numbers_is_refused(text):
    with pytest.raises(UserError, match="is not a list of numbers\nwhere: --ranks\nmend: "):
        parse_numbers(text, "--ranks")
