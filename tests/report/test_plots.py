from fedmef_dist.report.adjustments import STEPS
from fedmef_dist.report.groups import group_runs
from fedmef_dist.report.plots import save_plots
from fedmef_dist.report.runs import read_run


def test_all_plots_in_the_order_of_the_report(make_run, tmp_path):
    logged = {"layer_density/fc": 0.2, "sparsity/survived": 1.0, "sparsity/overlap": 0.5}
    logged |= {f"adjust/accuracy_{step}": 0.5 for step in STEPS}
    files = save_plots(group_runs([read_run(make_run("a", logged={1: logged}))]), tmp_path)
    assert [file.name for file in files] == [
        *("accuracy_rounds.png", "accuracy_wire.png", "accuracy_flops.png", "costs.png", "memory.png"),
        *("layer_density.png", "mask_stability.png", "around_adjustment.png"),
    ]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
