import json

import numpy as np

from fedmef_dist.report.charts import LEFT, RIGHT, LineChart, Series, _edges, line_chart
from fedmef_dist.report.mean_lines import Line
from fedmef_dist.report.page_layers import Shades
from fedmef_dist.report.timelines import read_spans


def series(count, group=0, deviation=None):
    x = np.arange(1.0, count + 1)
    return Series(group, f"group {group}", Line(x, x / count, deviation))


def test_a_long_line_is_thinned_and_keeps_its_ends():
    chart = LineChart("Title", "Reading.", "Round", "Value", [series(1001)])
    (path,) = chart.drawn().paths
    points = json.loads(chart.drawn().data)["series"][0]["points"]
    assert len(points) <= 300
    assert [points[0][2:], points[-1][2:]] == [[1, 0.000999], [1001, 1]]
    assert path.line.startswith(f"M{LEFT:.1f} ")
    assert f"L{RIGHT:.1f} " in path.line
    assert path.dots == []  # too many to tell apart
    assert chart.drawn().summary == "Value, first and last value of each line: group 0: 0.000999 to 1."


def test_a_band_of_what_is_never_negative_ends_at_0():
    line = Line(np.array([1.0, 2.0]), np.array([1.0, 3.0]), np.array([2.0, 1.0]))
    (chart,) = line_chart("Seconds", "", ("Round", "Seconds"), [Series(0, "a", line)])
    lower, upper = _edges(line)
    assert (lower.tolist(), upper.tolist()) == ([0.0, 2.0], [3.0, 4.0])
    assert all(float(label) >= 0 for _, label in chart.drawn().y_ticks)


def test_a_single_point_is_no_chart_and_is_left_out_of_one():
    assert line_chart("Title", "Reading.", ("Round", "Value"), [series(1)]) == []
    (chart,) = line_chart("Title", "Reading.", ("Round", "Value"), [series(1), series(3, group=1)])
    assert [one.group for one in chart.series] == [1]


def test_lines_far_apart_are_on_a_logarithmic_axis():
    chart = LineChart("Title", "Reading.", "Bytes (MB)", "Value", [series(3), series(300, group=1)])
    assert [label for _, label in chart.drawn().x_ticks] == ["1", "10", "100"]
    assert chart.drawn().x_label == "Bytes (MB), logarithmic"
    left = json.loads(chart.drawn().data)["series"][1]["points"][9][0]
    np.testing.assert_allclose((left - LEFT) / (RIGHT - LEFT), np.log(10) / np.log(300), atol=0.01)


def test_shades_go_from_the_lowest_density_to_1():
    shades = Shades(0.01)
    assert [shades.number(density) for density in (0.0, 0.01, 0.1, 0.99, 1.0)] == [0, 0, 4, 7, 7]
    assert shades.keys()[0][0].startswith("1 to ")
    assert shades.keys()[-1][0].endswith(" to 100 %")


def test_only_spans_of_a_round_are_read(tmp_path):
    (tmp_path / "timeline").mkdir()
    span = {"name": "train", "ph": "X", "pid": 0, "ts": 2_000_000, "dur": 500_000, "args": {"round": 3}}
    wrong = [{**span, "pid": 1}, {**span, "dur": -1}, {**span, "ts": "1"}, {**span, "ph": "C"}, {**span, "args": {}}]
    lines = ["[", "torn {", *(f"{json.dumps(one)}," for one in (*wrong, span)), '{"name": "half']
    (tmp_path / "timeline" / "rank-000.json").write_text("\n".join(lines))
    (found,) = read_spans(tmp_path)
    assert (found.rank, found.name, found.round, found.start, found.seconds) == (0, "train", 3, 2.0, 0.5)
    (tmp_path / "timeline" / "rank-000.json").unlink()
    (tmp_path / "timeline" / "rank-000.json").symlink_to("/dev/zero")
    assert read_spans(tmp_path) == []
