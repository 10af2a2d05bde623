import json

import pytest
import torch
from tiny import tiny

from fedmef_dist.data.shapes import shape_of
from fedmef_dist.report.memory import label, parts_of, report
from fedmef_dist.simulation.footprint import (
    Setting,
    as_json,
    compared_settings,
    measure,
    measure_settings,
    own_setting,
    random_batch,
)

CPU = torch.device("cpu")
CONTRACT = {
    "method",
    "model",
    "batch_size",
    "density",
    "prune_ratio",
    "activation_bytes",
    "peak_bytes",
    "modelled_bytes",
    "step_seconds",
    "modules",
    "gradient",
    "recompute",
    "state_bytes",
    "held_over_baseline",
    "peak_over_baseline",
    "step_over_baseline",
}


@pytest.fixture(scope="module")
def config():
    return tiny(model={"name": "resnet8"})


@pytest.fixture(scope="module")
def footprints(config):
    return measure(config, CPU, steps=2)


def test_the_round_that_takes_most_has_the_gradient_where_a_method_reads_it(config, footprints):
    for ordinary, most in zip(footprints, measure(config, CPU, steps=1, every_round=True), strict=True):
        more = most.measured.peak_bytes - ordinary.measured.peak_bytes
        assert more == 0 if ordinary.setting.method in ("fedavg", "sparsyfed") else more > 0


@pytest.mark.parametrize("method", ["fedmef", "fedavg"])
def test_what_is_modelled_in_bfloat16_is_what_is_measured(method):
    more = {"sap": {"prune_ratio": 0.7}} if method == "fedmef" else {}
    config = tiny(model={"name": "resnet8"}, method={"name": method}, runtime={"precision": "bf16"}, **more)
    shape = shape_of(config.data)
    batch = random_batch(config, shape, CPU)
    (found,) = measure_settings(config, shape, batch, [own_setting(config)], 1)
    assert found.activations.bytes == pytest.approx(found.measured.activation_bytes, rel=0.02)


NAMES = [
    "fedavg",
    "fedavg, recomputed",
    "fedtiny",
    "sparsyfed, p by layer",
    "fedmef, unpacked",
    "fedmef, exact",
    "fedmef, exact, recomputed",
    *(f"fedmef, p = {ratio}" for ratio in (0.3, 0.5, 0.7, 0.9)),
]


def by_name(footprints):
    return {label(footprint.setting): footprint for footprint in footprints}


def test_the_settings_are_dense_sparse_exact_and_pruned():
    settings = compared_settings(tiny())
    assert list(map(label, settings)) == NAMES
    assert [setting.density for setting in settings] == [1.0, 1.0, *[0.5] * 9]
    assert [setting.norm for setting in settings] == ["batch"] * 4 + ["nsconv"] * 7
    assert own_setting(tiny()) == settings[8]
    assert own_setting(tiny(method={"name": "fedavg"})) == compared_settings(tiny(method={"name": "fedavg"}))[0]


def test_a_configuration_that_is_none_of_them_comes_last():
    config = tiny(model={"norm": "group"}, sap={"prune_ratio": 0.6, "scope": "sample"})
    settings = compared_settings(config)
    assert len(settings) == len(NAMES) + 1
    assert settings[-1] == own_setting(config) == Setting("fedmef", "group", config.resolved_sap, 0.5)


def test_the_less_is_kept_the_less_is_held(footprints):
    found = by_name(footprints)
    held = {name: footprint.measured.activation_bytes for name, footprint in found.items()}
    assert held["fedavg"] == held["fedtiny"]
    assert held["fedavg, recomputed"] < 0.5 * held["fedavg"]
    order = ["fedavg", "fedmef, unpacked", *NAMES[7:]]
    assert [held[name] for name in order] == sorted((held[name] for name in order), reverse=True)
    assert held["fedmef, exact, recomputed"] < held["fedmef, exact"] < held["fedmef, unpacked"]
    assert held["fedmef, p = 0.9"] < 0.12 * held["fedavg"]
    assert found["fedmef, p = 0.9"].measured.peak_bytes < found["fedavg"].measured.peak_bytes


def test_the_baseline_carries_no_mask(footprints):
    found = by_name(footprints)
    dense, sparse = found["fedavg"].measured, found["fedtiny"].measured
    # The sparse network has a byte a prunable weight, the dense one a byte.
    weights = 77_248  # of resnet8's convolutions behind a first one of one channel
    assert 0 < sparse.state_bytes - dense.state_bytes <= weights


def test_what_is_exact_says_so_and_drops_nothing(footprints):
    for name, footprint in by_name(footprints).items():
        if "p " in name:
            assert (footprint.cosine is None) == (footprint.dropped.nonzeros == 0)
            assert footprint.cosine is None or 0.5 < footprint.cosine < 1
        else:
            assert footprint.cosine is None
            assert footprint.dropped == (0, 0)
    dropped = [footprint.dropped.mass for footprint in footprints[7:]]
    assert dropped == sorted(dropped)
    assert 0 < dropped[-1] < 1


def test_what_is_modelled_is_what_is_measured(footprints):
    for name, footprint in by_name(footprints).items():
        assert footprint.activations.bytes == footprint.device.activations
        measured, modelled = footprint.measured.activation_bytes, footprint.activations.bytes
        if "exact" in name or footprint.setting.prune_ratio in (0.3, 0.5):
            # Zeros are not packed, and about half of a ReLU's output is 0: the model is a bound.
            assert 0.4 * modelled < measured <= modelled
        else:
            assert measured == pytest.approx(modelled, rel=0.01)
        assert all(0 < module["bytes"] <= module["modelled_bytes"] for module in footprint.modules())
    # Dense weights and gradients against half of them.
    found = by_name(footprints)
    assert found["fedavg"].device.gradients > 1.9 * found["fedtiny"].device.gradients


def test_the_bars_parts_add_up_to_the_peak(footprints):
    for footprint in footprints:
        measured = footprint.measured
        parts = parts_of(footprint)
        assert sum(parts.values()) == max(measured.peak_bytes, measured.state_bytes + measured.activation_bytes)
    dense = parts_of(footprints[0])
    kinds = {"BatchNorm2d": 0, "ReLU": 0, "Conv2d": 0}
    for module in footprints[0].measured.modules:
        if module.kind in kinds:
            kinds[module.kind] += module.bytes
    assert dense["held: normalisation"] == kinds["BatchNorm2d"]
    assert dense["held: activation function"] == kinds["ReLU"]
    assert dense["held: convolution"] == kinds["Conv2d"]


def test_the_objects_are_those_of_the_contract(config, footprints):
    found = [as_json(config, footprint, footprints[0]) for footprint in footprints]
    assert all(found_one.keys() >= CONTRACT for found_one in found)
    assert json.loads(json.dumps(found)) == found
    assert found[2]["modules"][0].keys() >= {"name", "kind", "bytes"}
    assert sum(module["bytes"] for module in found[2]["modules"]) == found[2]["activation_bytes"]
    assert sum(found[2]["modelled"].values()) == found[2]["modelled_bytes"]
    assert found[2]["batch_size"] == 16
    assert [one["gradient"] for one in [*found[:3], *found[4:7]]] == ["exact"] * 6
    assert [one["recompute"] for one in found[:2]] == ["none", "blocks"]
    ratios = [found[0][f"{key}_over_baseline"] for key in ("held", "peak", "step")]
    assert ratios == [1, 1, 1]


def test_the_tables_by_hand(config, footprints):
    modules, methods = report(footprints, own_setting(config)).split("\nMethods:\n")
    rows = [line for line in modules.splitlines() if line.startswith("| ")]
    # Header, rule, every module, and all together.
    assert len(rows) == 2 + len(footprints[8].modules()) + 1
    # What the first convolution keeps: 16 images of 8 x 8 pixels.
    assert [cell.strip() for cell in rows[2].split("|")[1:-1]] == ["conv1", "NSConv2d", "4.10 kB", "4.10 kB", "+0.0 %"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in methods.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == NAMES
    assert [rows[2][place] for place in (1, 3, 7)] == ["exact", "1x", "1x"]
    ratio = footprints[10].measured.peak_bytes / footprints[0].measured.peak_bytes
    assert rows[12][7] == f"{ratio:.3g}x"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(config):
    found = measure(config, torch.device("cuda"), steps=1)
    assert found[-1].measured.peak_bytes < found[0].measured.peak_bytes
