import csv
import io

import pytest
from made_runs import measurement

from fedmef_dist.scaling.fitting import fit
from fedmef_dist.scaling.plots import save_plots
from fedmef_dist.scaling.points import Point, Study
from fedmef_dist.scaling.report import comma_separated, markdown

STUDY = Study(
    strong=(Point(1, 50, 2), Point(2, 50, 2)),
    weak=(Point(1, 50, 2), Point(2, 50, 4)),
    population=(Point(1, 50, 2), Point(1, 1000, 2)),
)


@pytest.fixture
def results():
    one = [measurement(1, 3.0, adjust=0.5, eval=0.5), measurement(1, 3.0, adjust=0.5, eval=0.5)]
    two = [measurement(2, 1.6, wait=0.2, reduce=0.1, adjust=0.5, eval=0.1)] * 2
    weak = [measurement(2, 3.2, (10.0, 20.0, 10.0, 20.0), wait=0.4, reduce=0.1, adjust=0.5, eval=0.3)] * 2
    return {STUDY.strong[0]: one, STUDY.strong[1]: two, STUDY.weak[1]: weak, STUDY.population[1]: one}


def rows(text, header):
    lines = text[text.index(header) :].splitlines()[2:]
    table = []
    for line in lines:
        if not line.startswith("|"):
            return table
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def report(results, study=STUDY):
    return markdown(study, results, fit([run for runs in results.values() for run in runs]).model, "measured here")


def test_speed_up_and_efficiency(results):
    text = report(results)
    assert text.startswith("# Scaling\n\nmeasured here\n")
    assert "median over 2 repetitions of 2 rounds" in text
    first, second = rows(text, "| Ranks | Cohort |")
    assert first[:5] == ["1", "2", "4.000 (4.000 to 4.000)", "1.00", "100.0 (100.0 to 100.0)"]
    assert second[:5] == ["2", "2", "2.500 (2.500 to 2.500)", "1.60", "80.0 (80.0 to 80.0)"]


def test_where_the_time_goes_and_what_is_lacking(results):
    text = report(results)
    assert rows(text, "| Ranks | train (%)")[1] == ["2", "64.00", "8.00", "4.00", "20.00", "4.00", "0.00"]
    # Of 5 rank-seconds: training 3.2 - 3, waiting 0.4, reducing 0.2, adjusting 1 - 0.5, evaluating 0.2 - 0.5.
    assert rows(text, "| Ranks | lacking") == [["2", "20.00", "+4.00", "+8.00", "+4.00", "+10.00", "-6.00", "+0.00"]]


def test_clients_of_the_population(results):
    assert rows(report(results), "| Clients |")[1] == [
        "1,000", "15", "4.000 (4.000 to 4.000)", "100.000", "1000.0", "3.0", "200 MB",
    ]  # fmt: skip


def test_a_study_without_populations_has_no_such_table(results):
    assert "Clients of the population" not in report(results, Study(STUDY.strong, STUDY.weak, ()))


def test_the_csv_has_a_row_a_run(results):
    table = list(csv.DictReader(io.StringIO(comma_separated(results))))
    assert len(table) == 8
    assert [row["repetition"] for row in table] == ["0", "1"] * 4
    second = table[2]
    assert (second["ranks"], second["clients"], second["cohort"]) == ("2", "50", "2")
    assert float(second["seconds"]) == pytest.approx(5.0)
    assert float(second["wait_seconds"]) == pytest.approx(0.4)
    assert float(second["samples"]) == 60.0


def test_every_plot_is_an_image(results, tmp_path):
    files = save_plots(STUDY, results, tmp_path)
    assert [file.name for file in files] == ["speedup.png", "efficiency.png", "phases.png", "clients.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
