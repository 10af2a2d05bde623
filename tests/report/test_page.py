import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from run_dirs import finished

from fedmef_dist.report.differences import differences_from
from fedmef_dist.report.groups import group_runs
from fedmef_dist.report.page import report_page
from fedmef_dist.report.runs import read_run

STEPS = ("before_extrusion", "after_extrusion", "after_prune", "after_grow")
VOID = {"meta", "link"}  # drawings close theirs
EVERYTHING = {
    number: {
        "layer_density/conv": 0.4,
        "layer_density/fc": 0.01 * number,
        "sparsity/survived": 1 / number,
        "sparsity/overlap": 0.9,
        "sparsity/grown_survived": 0.2 * number,
        "eval/client_accuracy_mean": 0.5,
        "eval/client_accuracy_std": 0.1,
        "eval/client_accuracy_worst_decile": 0.2,
        "train/loss": 1 / number,
        "time/round": 2.0,
        "time/train": 1.5,
        "flops/train": 1e9,
        **{f"adjust/accuracy_{step}": 0.5 for step in STEPS},
    }
    for number in range(1, 5)
}


class Read(HTMLParser):
    """The elements of a page with their attributes, and whether each is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.data = [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.data.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def charts(self):
        return {
            svg["aria-label"].partition(".")[0]: json.loads(figure["data-chart"])
            for figure, svg in zip(
                [one for one in self.all("figure") if "data-chart" in one],
                [one for one in self.all("svg") if one.get("class") == "plot" and "tabindex" in one],
                strict=True,
            )
        }


def page_of(*paths, baseline=None):
    groups = group_runs([read_run(path) for path in paths])
    return report_page(groups, None, differences=[] if baseline is None else [differences_from(groups, baseline)])


def seeds(make_run, name, method, *accuracies):
    return [
        make_run(f"{name}{seed}", method, seed, (0.1, accuracy), logged=EVERYTHING)
        for seed, accuracy in enumerate(accuracies)
    ]


def test_the_curves_hold_the_runs_numbers(make_run):
    page = Read(page_of(*seeds(make_run, "a", "fedmef", 0.7, 0.9), make_run("b", "fedavg")))
    chart = page.charts()["Accuracy over rounds"]
    assert [one["name"] for one in chart["series"]] == ["a", "b"]
    assert [point[2:] for point in chart["series"][0]["points"]] == [[2, 10, 0], [4, 80, 14.1]]
    assert [point[2:] for point in chart["series"][1]["points"]] == [[2, 50], [4, 90]]
    assert page.charts()["Accuracy over bytes"]["x"] == "Bytes on the wire (MB)"
    assert page.charts()["Around an adjustment"]["names"][2] == "after\npruning"


def test_every_section_of_a_single_run(make_run):
    page = Read(page_of(make_run("a", logged=EVERYTHING)))
    sections = {one["id"] for one in page.all("section")}
    assert sections == {"accuracy", "costs", "memory", "mask", "clients", "time", "settings", "environment"}
    assert sections == {one["href"].removeprefix("#") for one in page.all("a")} - {"content"}
    assert {"Clients: worst tenth", "Change of the mask", "Time of a round"} <= page.charts().keys()
    assert [one["data-name"] for one in page.all("svg") if "data-strip" in one] == ["conv", "fc"]
    assert {"How masks move", "Accuracy around an adjustment of the mask"} <= {*page.data["h3"]}
    assert page.all("button") == []  # a single group needs no legend


def test_what_was_not_measured_is_left_out(make_run):
    page = Read(page_of(make_run("a", accuracies=(0.5,))))
    assert "Accuracy over rounds" not in page.charts()  # one test shows no course
    assert not {one["id"] for one in page.all("section")} & {"mask", "clients", "baseline"}


def test_the_page_needs_nothing_and_runs_only_its_own_script(make_run):
    text = page_of(*seeds(make_run, "a", "fedmef", 0.7, 0.9), make_run("b", "fedavg"))
    page = Read(text)
    (policy,) = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    assert "http://" not in text
    assert "https://" not in text
    for tag, attributes in page.elements:
        assert attributes.get("src", "data:").startswith("data:"), tag
        assert attributes.get("href", "#").startswith(("#", "data:")), tag


def test_whoever_does_not_see_it_can_read_it(make_run):
    page = Read(page_of(*seeds(make_run, "a", "fedmef", 0.7, 0.9), make_run("b", "fedavg", logged=EVERYTHING)))
    assert page.all("html") == [{"lang": "en"}]
    for drawing in page.all("svg"):
        assert drawing.get("aria-hidden") == "true" or (drawing["role"] == "img" and drawing["aria-label"])
    boxes = [one for one in page.all("div") if one.get("class") == "scroll"]
    assert len(boxes) == len(page.all("table"))
    assert all(one["aria-label"] and one["tabindex"] == "0" for one in boxes)
    assert all(one.get("scope") for one in page.all("th"))
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_nothing_is_called_better_whose_interval_includes_0(make_run):
    def verdicts(place, *accuracies):
        runs = seeds(make_run, f"{place}/moving", "fedmef", *accuracies)
        runs += seeds(make_run, f"{place}/still", "fedavg", 0.5, 0.5, 0.5)
        page = Read(page_of(*runs, baseline="still"))
        (dot,) = page.all("u")
        return dot["class"], [text for text in page.data["span"] if "settled" in text or "higher" in text]

    assert verdicts("one", 0.4, 0.6, 0.7) == ("open", ["+6.67 (-31.28 to +44.61): not settled"])
    assert verdicts("two", 0.6, 0.61, 0.62) == ("", ["+11.00 (+8.52 to +13.48): higher"])


def test_the_verdict_of_verify_is_on_it(tmp_path):
    run = finished(tmp_path / "whole")
    assert "whole" in Read(page_of(run)).data["td"]
    (run / "checkpoints" / "round-000003" / "state.safetensors").write_bytes(b"other")
    assert any("the checkpoint is broken" in cell for cell in Read(page_of(run)).data["td"])


def test_a_timeline_whose_newest_rounds_are_those_of_ranks_that_are_not_shown(make_run):
    run = make_run("a")
    (run / "timeline").mkdir()
    for rank in range(34):
        span = {"name": "train", "ph": "X", "pid": rank, "ts": 5, "dur": 5, "args": {"round": 2 if rank < 32 else 9}}
        (run / "timeline" / f"rank-{rank:03d}.json").write_text(f"[\n{json.dumps(span)},\n")
    assert any("in rounds 1 to 2" in title for title in Read(page_of(run)).data["h3"])


HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}{% raw %}</title><!--"


@pytest.mark.parametrize("count", [1, 2])
def test_names_from_run_directories_stay_text(make_run, count):
    logged = {
        number: {**EVERYTHING[number], f"layer_density/{HOSTILE}": 0.5, HOSTILE: HOSTILE} for number in range(1, 5)
    }
    versions = {"torch": HOSTILE, "python": [HOSTILE], "fedmef_dist": {HOSTILE: 1}}
    runs = [
        make_run(
            f"{number}<script>alert(1)</script>".replace("/", "|"),
            f"{HOSTILE}{number}",
            logged=logged,
            seed=HOSTILE,
            settings={"model": {"name": HOSTILE, HOSTILE: HOSTILE}},
            versions=versions,
            launcher=HOSTILE,
            **{"model/digest": HOSTILE},
        )
        for number in range(count)
    ]
    (runs[0] / "timeline").mkdir()
    spans = [
        {"name": name, "ph": "X", "pid": 0, "ts": 5, "dur": 5, "args": {"round": 4, "more": HOSTILE}}
        for name in ("train", HOSTILE)
    ]
    lines = "".join(f"{json.dumps(span)},\n" for span in spans)
    (runs[0] / "timeline" / "rank-000.json").write_text(f"[\n{lines}{HOSTILE}\n")
    text = page_of(*runs)
    page = Read(text)
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert "49" not in page.data["title"][0]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert text.count("<!--") == 0
    assert any(HOSTILE in title for title in page.data["title"])  # of a span, as it is
