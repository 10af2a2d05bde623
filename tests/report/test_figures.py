import errno
import os

import numpy as np
import pytest

from fedmef_dist.report.figures import add_legend, draw_line, folded, look, new_figure, save_figure


def drawn(labels):
    figure, (axes,) = new_figure(1)
    for number, label in enumerate(labels):
        draw_line(axes, number, label, np.arange(5.0), np.arange(5.0), np.ones(5))
    height = figure.get_size_inches()[1]
    add_legend(figure, axes)
    return figure, axes, height


def test_groups_differ_without_colour():
    assert len({(str(look(number)["ls"]), look(number)["marker"]) for number in range(35)}) == 35


def test_neighbours_differ_in_grey():
    def grey(number):
        red, green, blue = (int(look(number)["color"][place : place + 2], 16) for place in (1, 3, 5))
        return (0.299 * red + 0.587 * green + 0.114 * blue) / 255

    assert min(abs(grey(number) - grey(number + 1)) for number in range(8)) > 0.15


def test_the_band_is_one_deviation_to_both_sides():
    _, (axes,) = new_figure(1)
    draw_line(axes, 0, "a", np.array([1.0, 2.0]), np.array([50.0, 60.0]), np.array([5.0, 1.0]))
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (45.0, 61.0)


def test_a_few_short_labels_stand_inside_and_cost_no_height():
    figure, axes, height = drawn(["fedavg", "fedmef"])
    assert axes.get_legend() is not None
    assert not figure.legends
    assert figure.get_size_inches()[1] == height


@pytest.mark.parametrize(
    ("labels", "columns"),
    [
        ([f"method{number}, density 0.1" for number in range(9)], 2),
        (["a label that is far too long to stand inside", "another such one, as long as that one"], 1),
    ],
)
def test_many_or_long_labels_stand_below_where_the_figure_grows_and_nothing_is_cut(labels, columns):
    figure, axes, height = drawn(labels)
    assert axes.get_legend() is None
    assert figure.legends[0]._ncols == columns
    assert figure.get_size_inches()[1] > height
    figure.canvas.draw()
    box, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0
    assert box.x1 <= whole.x1
    assert box.y1 < axes.get_window_extent().y0


def test_a_long_label_is_folded():
    assert folded("rounds-30_every-10 mean", 18) == "rounds-30_every-10\nmean"


def test_a_figure_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    old = save_figure(new_figure(1)[0], tmp_path / "plot")
    assert old == tmp_path / "plot.png"
    content = old.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_figure(new_figure(2)[0], old)
    assert old.read_bytes() == content
    assert list(tmp_path.iterdir()) == [old]
