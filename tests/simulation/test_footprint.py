import json

import pytest
import torch
from tiny import TREE, tiny

from fedmef_dist.base.errors import UserError
from fedmef_dist.report.memory import parts_of, report
from fedmef_dist.simulation.footprint import Setting, as_json, compared_settings, measure, memory_command, own_setting

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
}


@pytest.fixture(scope="module")
def config():
    return tiny(model={"name": "resnet8"})


@pytest.fixture(scope="module")
def footprints(config):
    return measure(config, CPU, steps=2)


def names(settings):
    return [(setting.method, setting.norm, setting.density, setting.prune_ratio) for setting in settings]


def test_the_settings_are_dense_sparse_and_pruned():
    expected = [("fedavg", "batch", 1.0, 0.0), ("fedtiny", "batch", 0.5, 0.0)]
    expected += [("fedmef", "nsconv", 0.5, ratio) for ratio in (0.3, 0.5, 0.7, 0.9)]
    assert names(compared_settings(tiny())) == expected
    assert own_setting(tiny()) == compared_settings(tiny())[3]
    assert own_setting(tiny(method={"name": "fedavg"})) == compared_settings(tiny(method={"name": "fedavg"}))[0]


def test_a_configuration_that_is_none_of_them_comes_last():
    config = tiny(model={"norm": "group"}, sap={"prune_ratio": 0.6, "scope": "sample"})
    settings = compared_settings(config)
    assert len(settings) == 7
    assert settings[-1] == own_setting(config) == Setting("fedmef", "group", config.resolved_sap, 0.5)


def test_the_less_is_kept_the_less_is_held(footprints):
    held = [footprint.measured.activation_bytes for footprint in footprints]
    assert held[0] == held[1]
    assert held[1:] == sorted(held[1:], reverse=True)
    assert held[5] < 0.12 * held[0]
    peaks = [footprint.measured.peak_bytes for footprint in footprints]
    assert peaks[5] < peaks[0]


def test_what_is_modelled_is_what_is_measured(footprints):
    for footprint in footprints:
        assert footprint.activations.bytes == footprint.device.activations
        # Zeros are not packed, and about half of a ReLU's output is 0.
        slack = 0.25 if footprint.setting.prune_ratio < 0.7 else 0.01
        assert footprint.measured.activation_bytes == pytest.approx(footprint.activations.bytes, rel=slack)
        assert all(0 < module["bytes"] <= module["modelled_bytes"] for module in footprint.modules())
    # Dense weights and gradients against half of them.
    assert footprints[0].device.gradients > 1.9 * footprints[1].device.gradients


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
    found = [as_json(config, footprint) for footprint in footprints]
    assert all(found_one.keys() >= CONTRACT for found_one in found)
    assert json.loads(json.dumps(found)) == found
    assert found[2]["modules"][0].keys() >= {"name", "kind", "bytes"}
    assert sum(module["bytes"] for module in found[2]["modules"]) == found[2]["activation_bytes"]
    assert sum(found[2]["modelled"].values()) == found[2]["modelled_bytes"]
    assert found[2]["batch_size"] == 16


def test_the_tables_by_hand(config, footprints):
    modules, methods = report(footprints, own_setting(config)).split("\nMethods:\n")
    rows = [line for line in modules.splitlines() if line.startswith("| ")]
    # Header, rule, every module, and all together.
    assert len(rows) == 2 + len(footprints[3].modules()) + 1
    # What the first convolution keeps: 16 images of 8 x 8 pixels.
    assert [cell.strip() for cell in rows[2].split("|")[1:-1]] == ["conv1", "NSConv2d", "4.10 kB", "4.10 kB", "+0.0 %"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in methods.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["fedavg", "fedtiny", *(f"fedmef, p = {p}" for p in (0.3, 0.5, 0.7, 0.9))]
    assert rows[2][2:4] == ["1x", "1x"]
    ratio = footprints[5].measured.peak_bytes / footprints[1].measured.peak_bytes
    assert rows[7][8] == f"{ratio:.3g}x"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(TREE))
    return path


def test_the_command_prints_objects_and_draws_bars(file, tmp_path, capsys):
    memory_command(file, ["federation.batch_size=2"], True, tmp_path / "bars.png", 1)
    assert [found["batch_size"] for found in json.loads(capsys.readouterr().out)] == [2] * 6
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_tables(file, capsys):
    memory_command(file, [], False, None, 1)
    assert "fedmef, p = 0.9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "out", "message"),
    [
        (["method.density=0.001"], None, "density 0.001 cannot be reached"),
        (["model.name=resnet9"], None, "unknown model"),
        ([], "missing/bars.png", "the plot cannot be written"),
        ([], "bars.docx", "the plot cannot be written"),
    ],
)
def test_wrong_input(file, tmp_path, overrides, out, message):
    with pytest.raises(UserError, match=message):
        memory_command(file, overrides, True, out and tmp_path / out, 1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(config):
    found = measure(config, torch.device("cuda"), steps=1)
    assert [one.measured.activation_bytes for one in found] == [one.activations.bytes for one in found]
    assert found[5].measured.peak_bytes < found[0].measured.peak_bytes
