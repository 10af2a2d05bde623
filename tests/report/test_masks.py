import numpy as np
import pytest

from fedmef_dist.report import masks
from fedmef_dist.report.groups import group_runs
from fedmef_dist.report.masks import held, layer_densities, overlap, save_layer_densities, save_stability
from fedmef_dist.report.runs import read_run


def densities(first, second):
    return {"layer_density/conv": first, "layer_density/fc": second}


def groups_of(*paths):
    return group_runs([read_run(path) for path in paths])


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved while a test runs."""
    saved = []
    save = masks.save_figure
    monkeypatch.setattr(masks, "save_figure", lambda figure, path: saved.append(figure) or save(figure, path))
    return saved


def test_a_value_holds_until_the_next_one(make_run):
    run = read_run(make_run("a", logged={2: {"x": 0.5}, 4: {"x": 0.25}}))
    np.testing.assert_array_equal(held(run, "x"), [np.nan, 0.5, 0.5, 0.25])
    assert np.isnan(held(run, "unknown")).all()


def test_densities_are_means_over_the_seeds_in_every_round(make_run):
    (group,) = groups_of(
        make_run("a0", seed=0, logged={1: densities(0.4, 0.2), 3: densities(0.2, 0.4)}),
        make_run("a1", seed=1, logged={1: densities(0.4, 0.2), 4: densities(0.6, 0.0)}),
    )
    found = layer_densities(group)
    assert list(found.layers) == ["conv", "fc"]
    np.testing.assert_allclose(found.density, [[0.4, 0.4, 0.3, 0.4], [0.2, 0.2, 0.3, 0.2]])


def test_groups_without_densities_are_left_out(make_run, tmp_path, figures):
    sparse = make_run("sparse", logged={1: densities(0.4, 0.0)})
    dense = make_run("dense", "fedavg")
    (file,) = save_layer_densities(groups_of(sparse, dense), tmp_path)
    assert file.name == "layer_density.png"
    titles = [axes.get_title() for axes in figures[0].axes]
    assert titles == ["sparse", ""]  # one panel, and the colours' scale
    assert save_layer_densities(groups_of(dense), tmp_path) == []
    unknown = make_run("unknown", logged={1: densities(0.4, None), 2: densities(0.4, 0.1)})
    assert layer_densities(*groups_of(unknown)) is None


def test_each_panel_names_its_layers_where_they_differ(make_run, tmp_path, figures):
    first = make_run("first", logged={1: densities(0.4, 0.2)})
    second = make_run("second", "static", logged={1: densities(0.3, 0.1)})
    other = make_run("other", "feddst", logged={1: {"layer_density/head": 0.5}})
    for runs, named in (((first, second), [2, 0]), ((first, other), [2, 1])):
        save_layer_densities(groups_of(*runs), tmp_path)
        assert [len(axes.get_yticks()) for axes in figures.pop().axes[:2]] == named


def test_overlap_is_taken_at_the_rounds_that_all_seeds_have(make_run):
    first = {2: {"sparsity/overlap": 0.6}, 3: {"sparsity/overlap": 0.9}, 4: {"sparsity/overlap": 0.8}}
    second = {2: {"sparsity/overlap": 0.8}, 4: {"sparsity/overlap": 0.8}}
    (group,) = groups_of(make_run("a0", seed=0, logged=first), make_run("a1", seed=1, logged=second))
    line = overlap(group)
    np.testing.assert_array_equal(line.x, [2, 4])
    np.testing.assert_allclose(line.y, [70, 80])
    np.testing.assert_allclose(line.deviation, [10 * np.sqrt(2), 0], atol=1e-9)


def test_stability_has_a_line_a_group_in_each_panel(make_run, tmp_path, figures):
    moving = {
        1: {"sparsity/survived": 1.0},
        3: {"sparsity/survived": 0.7, "sparsity/overlap": 0.6},
        4: {"sparsity/survived": 0.7, "sparsity/overlap": 0.8},
    }
    paths = [
        make_run("a0", seed=0, logged=moving),
        make_run("a1", seed=1, logged=moving | {3: {"sparsity/survived": 0.5, "sparsity/overlap": 0.4}}),
        make_run("still", "static", logged={1: {"sparsity/survived": 1.0}}),
        make_run("dense", "fedavg"),
    ]
    (file,) = save_stability(groups_of(*paths), tmp_path)
    assert file.name == "mask_stability.png"
    overlaps, survived = figures[0].axes
    assert [line.get_label() for line in overlaps.lines] == ["a"]
    np.testing.assert_allclose(overlaps.lines[0].get_xydata(), [[3, 50], [4, 80]])
    assert [line.get_label() for line in survived.lines] == ["a", "still"]
    np.testing.assert_allclose(survived.lines[0].get_ydata(), [100, 100, 60, 70])
    band = survived.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(60 - 100 * np.std([0.7, 0.5], ddof=1))


def test_a_single_adjustment_shows_no_course(make_run, tmp_path, figures):
    once = {1: {"sparsity/survived": 1.0}, 3: {"sparsity/survived": 0.7, "sparsity/overlap": 0.6}}
    save_stability(groups_of(make_run("a", logged=once)), tmp_path)
    assert [axes.get_ylabel() for axes in figures[0].axes] == ["Active weights of the first mask (%)"]


def test_stability_that_was_not_logged_is_not_drawn(make_run, tmp_path):
    assert save_stability(groups_of(make_run("a")), tmp_path) == []
