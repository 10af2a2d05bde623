import pytest

from fedmef_dist.report import bars
from fedmef_dist.report.bars import save_costs, save_memory
from fedmef_dist.report.groups import group_runs
from fedmef_dist.report.runs import read_run

MEMORY = ("memory/device_bytes", "memory/peak_bytes", "memory/activation_bytes")


def groups_of(*paths):
    return group_runs([read_run(path) for path in paths])


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved while a test runs."""
    saved = []
    save = bars.save_figure
    monkeypatch.setattr(bars, "save_figure", lambda figure, path: saved.append(figure) or save(figure, path))
    return saved


def test_memory_modelled_and_measured_stand_side_by_side_with_dense_fedavg(make_run, tmp_path, figures):
    groups = groups_of(make_run("a"), make_run("b", "fedavg", **{"reference/peak_bytes": None}))
    (file,) = save_memory(groups, tmp_path)
    assert file.name == "memory.png"
    axes = figures[0].axes[0]
    assert [bar.get_width() for bar in axes.patches] == [2.5, 2.5, 45.6, 45.6, 3.0, 3.0]  # MB
    peak, activations = (list(line.get_xdata()) for line in axes.lines)
    assert (peak, activations) == ([91.2], [12.0, 12.0])
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == [
        *("on a device, modelled", "peak, measured", "activations, measured", "dense FedAvg, measured"),
    ]
    assert axes.get_xlabel().endswith("(MB)")


def test_memory_that_no_run_knows_is_not_drawn(make_run, tmp_path):
    assert save_memory(groups_of(make_run("a", **dict.fromkeys(MEMORY))), tmp_path) == []


@pytest.mark.parametrize("missing", MEMORY)
def test_memory_that_was_not_measured_leaves_its_bar_out(make_run, tmp_path, missing):
    assert save_memory(groups_of(make_run("a", **{missing: None})), tmp_path)


def test_costs_show_bytes_beside_dense_fedavg_and_compute(make_run, tmp_path, figures):
    (file,) = save_costs(groups_of(make_run("a", wire=2e6), make_run("b", "fedavg", wire=1e7)), tmp_path)
    assert file.name == "costs.png"
    wire, compute = figures[0].axes
    assert [bar.get_width() for bar in wire.patches] == [2.0, 10.0, 10.0, 10.0]  # MB, own and dense
    assert [text.get_text() for text in wire.texts] == ["0.2x", "1x"]
    assert [bar.get_width() for bar in compute.patches] == [2.0, 2.0]  # TFLOP, 4 rounds of 5e11


def test_costs_need_no_reference_but_something_to_show(make_run, tmp_path):
    assert save_costs(groups_of(make_run("a", **{"reference/wire_bytes": None})), tmp_path)
    group = groups_of(make_run("b"))
    for line in (group[0].runs[0].summary, *group[0].runs[0].metrics):
        line.pop("wire/total_bytes"), line.pop("flops/total")
    assert save_costs(group, tmp_path) == []


def test_long_labels_do_not_run_into_each_other(make_run, tmp_path, figures):
    long = "rounds-30_clients_per_round-5_every-10_around_adjustment-true_extrusion-false_extrusion_target-"
    group = groups_of(make_run(long + "a"))[0]
    save_costs([group] * 8, tmp_path)
    figures[0].canvas.draw()
    first, second, *_ = (text.get_window_extent() for text in figures[0].axes[0].get_yticklabels())
    assert second.y1 <= first.y0
