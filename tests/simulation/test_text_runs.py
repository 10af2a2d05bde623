"""The whole loop on text: a GPT of a few thousand weights on plays and stories that the tests write."""

from math import exp

import data_files
import pytest
from safetensors.torch import load_file
from tiny import Recorder, alone, started, tiny

import fedmef_dist
from fedmef_dist.base.errors import UserError
from fedmef_dist.config import to_tree
from fedmef_dist.session.export import export
from fedmef_dist.session.session import simulate

FEDMEF = {"name": "fedmef", "density": 0.5, "adjust_every": 2, "adjust_until": 8}
FEDAVG = {"name": "fedavg"}
FEDTINY = {"name": "fedtiny", "density": 0.5, "adjust_every": 2, "adjust_until": 8}
STATIC = {"name": "static", "density": 0.5}


@pytest.fixture
def text(tmp_path):
    """`text(method=FEDAVG)` is the configuration of a tiny run on two plays of two roles, with these sections."""
    data_files.shakespeare(tmp_path / "data")
    data_files.tinystories(tmp_path / "data")

    def config(dataset="shakespeare", scheme="natural", **sections):
        root, context = str(tmp_path / "data"), {"context": 8}
        return tiny(
            **{
                "data": {"dataset": dataset, "root": root, "partition": {"scheme": scheme}, "text": context},
                "model": {"name": "gpt", "gpt": {"depth": 1, "width": 16, "heads": 2}},
                "federation": {"clients": 4, "clients_per_round": 2, "rounds": 8, "batch_size": 8},
                "optimizer": {"lr": 0.3, "momentum": 0.5},
                "method": FEDMEF,
                "evaluation": {"every": 4},
                **sections,
            }
        )

    return config


@pytest.mark.parametrize("norm", ["nsconv", "layer"])
@pytest.mark.parametrize(
    "method",
    [
        FEDTINY,
        STATIC | {"criterion": "snip"},
        STATIC | {"criterion": "snip", "scores": "clients"},
        STATIC | {"criterion": "synflow"},
    ],
    ids=["fedtiny", "snip", "snip of clients", "synflow"],
)
def test_a_first_mask_is_chosen_with_text(text, tmp_path, method, norm):
    config = text(method=method, federation={"clients": 4, "clients_per_round": 2, "rounds": 4, "batch_size": 8})
    config = config.model_copy(update={"model": config.model.model_copy(update={"norm": norm})})
    simulation, evaluated = play(config, tmp_path)
    assert simulation.space.density == pytest.approx(0.5, abs=0.001)
    assert min(simulation.space.layer_counts()) > 0
    assert evaluated[-1]["eval/perplexity"] < 18


def play(config, tmp_path):
    recorder = Recorder()
    simulation = started(config, alone(), tmp_path / "run")
    simulation.run(recorder)
    return simulation, [metrics for metrics in recorder.rounds if "eval/loss" in metrics]


@pytest.mark.parametrize("method", [FEDMEF, FEDAVG], ids=["fedmef", "fedavg"])
@pytest.mark.parametrize(("dataset", "scheme"), [("shakespeare", "natural"), ("tinystories", "iid")])
def test_a_gpt_learns(text, tmp_path, method, dataset, scheme):
    simulation, evaluated = play(text(dataset, scheme, method=method), tmp_path)
    assert [metrics["round"] for metrics in evaluated] == [4, 8]
    for metrics in evaluated:
        assert metrics["eval/perplexity"] == pytest.approx(exp(metrics["eval/loss"]))
    # Knowing how frequent each character is gives a perplexity of 13; knowing nothing, 18.
    assert evaluated[-1]["eval/perplexity"] < 8
    assert evaluated[-1]["eval/accuracy"] > 0.3
    inactive = ~simulation.space.mask.active
    assert inactive.any() == (method is FEDMEF)
    assert not simulation.server.values[: simulation.space.n_prunable][inactive].any()


@pytest.mark.parametrize("norm", ["layer", "nsconv", "none"])
@pytest.mark.parametrize("enabled", [True, False])
def test_fedmef_runs_with_every_normalisation_and_without_activation_pruning(text, tmp_path, norm, enabled):
    model = {"name": "gpt", "norm": norm, "gpt": {"depth": 1, "width": 16, "heads": 2}}
    _, evaluated = play(text(model=model, sap={"enabled": enabled}, optimizer={"lr": 0.1}), tmp_path)
    assert evaluated[-1]["eval/perplexity"] < 17


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "shards", "quantity", "lazy_dirichlet"])
def test_roles_can_be_mixed_by_every_scheme(text, tmp_path, scheme):
    _, evaluated = play(text(scheme=scheme, evaluation={"every": 8, "per_client": 4}), tmp_path)
    assert evaluated[0]["eval/clients"] == 4


def test_text_of_nobody_has_no_natural_clients(text, tmp_path):
    with pytest.raises(UserError, match="does not say whose"):
        play(text("tinystories", "natural"), tmp_path)


def test_each_client_is_tested_on_its_own_roles_last_lines(text, tmp_path):
    simulation, evaluated = play(text(evaluation={"every": 8, "per_client": 4}), tmp_path)
    for client in range(4):
        own = simulation.client_evaluation.local_data(client)
        train = simulation.population.samples(client)
        assert own.labels.unique() == simulation.dataset.owners[train].unique()
    assert 0 < evaluated[0]["eval/client_accuracy_worst_decile"] <= evaluated[0]["eval/client_accuracy_mean"] < 1


def test_summary_memory_and_export(text, tmp_path, capsys):
    summary = simulate(text(), alone(), tmp_path / "run", "auto").values
    assert summary["eval/perplexity_last"] == pytest.approx(exp(summary["eval/loss_last"]))
    assert summary["memory/activation_bytes"] < 0.6 * summary["reference/activation_bytes"]
    export(tmp_path / "run", tmp_path / "model.safetensors")
    weights = load_file(tmp_path / "model.safetensors")
    density = sum(int(tensor.count_nonzero()) for name, tensor in weights.items() if name.endswith("proj.weight"))
    assert 0 < density < 16 * 16 + 48 * 16
    assert "not written" in capsys.readouterr().out  # layer normalisation has no weights that switch it off


def test_plain_weights_of_a_gpt_with_layer_normalisation(text, tmp_path):
    model = {"name": "gpt", "norm": "layer", "gpt": {"depth": 1, "width": 16, "heads": 2}}
    simulate(
        text(model=model, federation={"clients": 4, "clients_per_round": 2, "rounds": 1}),
        alone(),
        tmp_path / "run",
        "auto",
    )
    export(tmp_path / "run", tmp_path / "model.safetensors")
    assert (tmp_path / "model.torchvision.safetensors").exists()


@pytest.mark.parametrize("norm", ["layer", "nsconv"])
def test_bfloat16(text, tmp_path, norm):
    federation = {"clients": 4, "clients_per_round": 2, "rounds": 2, "batch_size": 8}
    model = {"name": "gpt", "norm": norm, "gpt": {"depth": 1, "width": 16, "heads": 2}}
    _, evaluated = play(text(model=model, federation=federation, runtime={"precision": "bf16"}), tmp_path)
    assert evaluated[-1]["eval/perplexity"] < 17


@pytest.mark.cluster
def test_the_same_bits_on_two_ranks(text, tmp_path, launch):
    import yaml

    config = text(federation={"clients": 4, "clients_per_round": 3, "rounds": 4, "batch_size": 8})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_tree(config)))
    one = fedmef_dist.run(config, tmp_path / "one").values
    done = launch("torchrun", 2, "-m", "fedmef_dist", "run", tmp_path / "config.yaml", "--run-dir", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert one["model/digest"] in (tmp_path / "two" / "summary.json").read_text()
