import pytest

from fedmef_dist.report.groups import group_runs
from fedmef_dist.report.runs import read_run

LONG = "rounds-30_every-10_around_adjustment-true_seed-0_"


def labels(*paths):
    return [group.label for group in group_runs([read_run(path) for path in paths])]


def test_long_directory_names_give_way_to_the_values_that_differ(make_run):
    paths = [
        make_run(f"{LONG}1", "fedmef", settings={"method": {"density": 0.05, "adjust_every": 10}}),
        make_run(f"{LONG}2", "fedmef", settings={"method": {"density": 0.1, "adjust_every": 10}}),
        make_run(f"{LONG}3", "static", settings={"method": {"density": 0.1}}),
        make_run(f"{LONG}4", "fedavg"),
    ]
    # adjust_every is the same wherever there is one; FedAvg has no density to show.
    assert labels(*paths) == ["fedmef, density 0.05", "fedmef, density 0.1", "static, density 0.1", "fedavg"]
    assert labels(*paths[:2]) == ["density 0.05", "density 0.1"]


def test_keys_that_share_their_last_part_are_shown_whole(make_run):
    paths = [
        make_run(f"{LONG}{size}", settings={"federation": {"batch_size": size}, "evaluation": {"batch_size": 2 * size}})
        for size in (8, 16)
    ]
    assert labels(*paths) == [
        "evaluation.batch_size 16, federation.batch_size 8",
        "evaluation.batch_size 32, federation.batch_size 16",
    ]


def test_values_of_any_kind_can_be_read(make_run):
    settings = [{"deadline": None, "lazy": True}, {"deadline": 0.5, "lazy": False}]
    paths = [make_run(f"{LONG}{number}", settings={"federation": one}) for number, one in enumerate(settings)]
    assert labels(*paths) == ["deadline null, lazy true", "deadline 0.5, lazy false"]


def test_short_directory_names_stay(make_run):
    assert labels(make_run("dense", "fedavg"), make_run("sparse", "fedmef")) == ["dense", "sparse"]
    assert labels(make_run("alone-with-a-long-name")) == ["alone-with-a-long-name"]


def test_settings_that_all_names_begin_with_are_left_out(make_run):
    differing = [
        {"method": {"first_mask": one, "criterion": one, "allocation": one}, "data": {"dataset": one}}
        for one in ("even", "layer")
    ]
    names = [f"name-static_first_mask-{one}" for one in ("even", "layer")]
    paths = [make_run(f"seed-0_density-0.03_{name}", settings=one) for name, one in zip(names, differing, strict=True)]
    assert labels(*paths) == ["first_mask-even", "first_mask-layer"]
    other = make_run("seed-0_density-0.1_form-balanced", settings={**differing[1], "seed": 3})
    assert labels(paths[0], other) == [f"density-0.03_{names[0]}", "density-0.1_form-balanced"]
    ends = [make_run(f"density-0.03_{end}", settings=one) for end, one in zip(("", "again"), differing, strict=True)]
    assert labels(*ends) == ["density-0.03_", "density-0.03_again"]


def test_values_take_over_where_directories_share_a_name(make_run):
    assert labels(make_run("x/run", "fedmef"), make_run("y/run", "fedavg")) == ["fedmef", "fedavg"]


def test_names_that_the_seeds_share_have_no_seed_to_drop(make_run):
    settings = {"lr-0.05": {"a_rather_long_key": 0.05}, "lr-0.1_rare": {"a_rather_long_key": 0.1}}
    paths = [
        make_run(f"seed{seed}/{name}", seed=seed, settings={"optimizer": {**one, "another_long_key": name}})
        for name, one in settings.items()
        for seed in (0, 1)
    ]
    assert labels(*paths) == ["lr-0.05", "lr-0.1_rare"]


def test_paths_tell_apart_what_neither_values_nor_names_do(make_run):
    # The key is missing from one and has the same value in the others: nothing that could be shown differs.
    paths = [make_run("x/run"), make_run("y/run", settings={"method": {"density": 0.1}})]
    assert labels(*paths) == [str(path) for path in paths]


@pytest.mark.parametrize(
    ("name", "seeds_label"),
    [
        *(("sweep_3", "sweep"), ("a-s0", "a"), ("resnet8-seed=1", "resnet8"), ("17", "17")),
        *(("rounds-30_seed-0_lambda-1.0", "rounds-30_lambda-1.0"), ("seed-0_x-a", "x-a")),
    ],
)
def test_the_label_of_several_seeds_drops_the_seed(make_run, name, seeds_label):
    assert labels(make_run(name, seed=0), make_run("other", seed=1)) == [seeds_label]
