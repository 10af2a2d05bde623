import numpy as np
import pytest
import torch
from tiny import Recorder, alone, started, tiny
from torch import nn

from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.group import Group
from fedmef_dist.data.batches import evaluation_batches
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.partitions import PartitionSettings
from fedmef_dist.data.population import FixedPopulation
from fedmef_dist.evaluation.own_data import Clientele, ClientEvaluation, open_client_evaluation
from fedmef_dist.evaluation.test_set import EvaluationSettings, add_up
from fedmef_dist.sparsity import ParameterSpace

LABELS = [0, 0, 0, 1, 1, 0, 2, 2, 2, 1]
# Clients hold samples 0-3, 4-5, 6-9: labels 0001, 10, 2221.
PEOPLE = FixedPopulation(np.arange(10), np.array([0, 4, 6, 10]))


def dataset(**keys):
    split = Split(torch.zeros(10, 1, 1, 1, dtype=torch.uint8), torch.tensor(LABELS))
    return Dataset("by hand", split, split, 3, (0.0,), (1.0,), 0, False, **keys)


class AlwaysZero(nn.Module):
    """Says class 0 whatever it sees."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return self.weight * torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(images), 1)


def found(group=None, population=PEOPLE, natural=False, data=None, **settings):
    model = AlwaysZero()
    space = ParameterSpace(model, [])
    settings = EvaluationSettings(**{"per_client": 9, "batch_size": 3, **settings})
    evaluation = ClientEvaluation(settings, data or dataset(), population, natural, seed=0)
    return evaluation.metrics(
        model, space, Clientele(space.values.clone(), None, lambda values, kept: values), group or alone()
    )


def test_accuracies_by_hand():
    # Right answers: 3 of 4, 1 of 2, 0 of 4.
    metrics = found()
    assert metrics["eval/clients"] == 3
    assert metrics["eval/client_accuracy_mean"] == pytest.approx((0.75 + 0.5 + 0) / 3)
    assert metrics["eval/client_accuracy_std"] == pytest.approx(np.std([0.75, 0.5, 0]))
    assert metrics["eval/client_accuracy_worst_decile"] == 0
    assert not any("group" in key for key in metrics)


def test_the_worst_decile_is_the_mean_of_the_worst_tenth():
    # 15 clients with one sample of class 0 or 1 each: a tenth of 15, rounded up, is 2.
    split = Split(torch.zeros(15, 1, 1, 1, dtype=torch.uint8), torch.tensor([1] + [0] * 14))
    data = Dataset("by hand", split, split, 2, (0.0,), (1.0,), 0, False)
    metrics = found(population=FixedPopulation(np.arange(15), np.arange(16)), data=data, per_client=20)
    assert metrics["eval/client_accuracy_worst_decile"] == 0.5


def test_groups_by_label():
    metrics = found(client_groups="label")
    # Commonest labels 0, 0 (of a tie the smallest) and 2.
    assert metrics["eval/label_0_accuracy"] == pytest.approx((0.75 + 0.5) / 2)
    assert metrics["eval/label_2_accuracy"] == 0
    assert metrics["eval/group_accuracy_worst"] == 0
    assert "eval/label_1_accuracy" not in metrics


def test_groups_by_size():
    sizes = [5, 1, 3, 8, 2, 7, 4, 6]
    people = FixedPopulation(np.arange(36) % 10, np.concatenate([[0], np.cumsum(sizes)]))
    evaluation = ClientEvaluation(EvaluationSettings(per_client=8, client_groups="size"), dataset(), people, False, 0)
    assert evaluation.groups.tolist() == [3, 1, 2, 4, 1, 4, 2, 3]


def test_the_same_clients_every_time_and_no_more_than_asked_for():
    people = FixedPopulation(np.arange(1000) % 10, np.arange(1001))
    one, again, other = (
        ClientEvaluation(EvaluationSettings(per_client=7), dataset(), people, False, s) for s in (0, 0, 1)
    )
    assert len(one.clients) == 7
    assert np.array_equal(one.clients, again.clients)
    assert not np.array_equal(one.clients, other.clients)
    assert open_client_evaluation(EvaluationSettings(), dataset(), people, PartitionSettings(), 0) is None


def test_natural_clients_are_tested_on_their_own_test_samples():
    owners = torch.tensor([4, 4, 4, 4, 6, 6, 9, 9, 9, 9])
    test_owners = torch.tensor([6, 6, 6, 6, 6, 9, 9, 9, 9, 9])  # nothing of 4
    data = dataset(owners=owners, test_owners=test_owners)
    metrics = found(natural=True, data=data)
    # Of 00011 three are right, of 02221 one; client 0 has no test samples and does not count.
    assert metrics["eval/clients"] == 2
    assert metrics["eval/client_accuracy_mean"] == pytest.approx((3 / 5 + 1 / 5) / 2)
    assert found(natural=False, data=data)["eval/clients"] == 3
    nobody = dataset(owners=owners, test_owners=torch.full((10,), 77))
    assert found(natural=True, data=nobody) == {"eval/clients": 0}


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_the_clients(world_size):
    parts = []

    class Rank(Group):
        def all_reduce(self, tensor):
            parts.append(tensor.clone())

    for rank in range(world_size):
        environment = Environment("torchrun", rank, world_size, 0, 1, "localhost", 1)
        found(Rank(environment, torch.device("cpu"), "gloo"))
    assert sum(parts).tolist() == [[3, 4], [1, 2], [0, 4]]


def test_a_run_reports_its_clients_and_is_not_changed_by_it(tmp_path):
    digests = []
    for count in (0, 5):
        recorder = Recorder()
        settings = {"every": 2, "per_client": count, "client_groups": "label"}
        run = started(tiny(evaluation=settings, federation={"rounds": 3}), alone(), tmp_path)
        run.run(recorder)
        digests.append(recorder.rounds[-1]["model/digest"])
        reported = [row["round"] for row in recorder.rounds if "eval/client_accuracy_worst_decile" in row]
        assert reported == ([2, 3] if count else [])
    assert digests[0] == digests[1]
    assert recorder.rounds[-1]["eval/clients"] == 5


def test_a_client_is_tested_with_the_statistics_that_it_keeps(tmp_path):
    federation = {"clients": 4, "clients_per_round": 4, "client_state": "statistics", "rounds": 2}
    model, evaluation = {"name": "resnet8", "width": 0.25}, {"every": 2, "per_client": 4}
    config = tiny(federation=federation, method={"name": "fedavg"}, model=model, evaluation=evaluation)
    recorder = Recorder()
    run = started(config, alone(), tmp_path)
    run.run(recorder)
    for row in run.kept._rows.values():
        row[len(row) // 2 :] = 1e12  # variances of which nothing comes through
    spoiled = run.client_evaluation.metrics(run.model, run.space, run.clientele, run.group)
    assert spoiled["eval/client_accuracy_mean"] < recorder.rounds[-1]["eval/client_accuracy_mean"]
    assert run.test()[1] == recorder.rounds[-1]["eval/accuracy"]


def test_a_client_of_a_tier_is_tested_with_its_part_of_the_model(tmp_path):
    federation = {"tiers": [{"share": 0.5, "density": 0.2}], "clients_per_round": 6, "rounds": 3}
    run = started(tiny(federation=federation, evaluation={"every": 3, "per_client": 8}), alone(), tmp_path)
    recorder = Recorder()
    run.run(recorder)
    people, mask, tiers = run.client_evaluation, run.space.mask, run.parts_of_tiers()
    own = run.tiers.of(people.clients)
    assert len({*own.tolist()}) == 2
    rights = []
    for part in tiers:
        run.space.load(part.plan.values)
        run.space.set_mask(part.mask)
        batches = [
            evaluation_batches(
                people.local_data(client), run.dataset, batch_size=512, rank=0, world_size=1, device="cpu"
            )
            for client in people.clients.tolist()
        ]
        rights.append([add_up(run.model, one)[1] for one in batches])
    run.space.set_mask(mask)
    assert rights[0] != rights[1]
    counts = people.counts(run.model, run.space, run.clientele, run.group)
    assert counts[:, 0].tolist() == [rights[tier][place] for place, tier in enumerate(own.tolist())]
    assert run.space.mask is mask
    assert recorder.rounds[-1]["eval/client_accuracy_mean"] == (counts[:, 0] / counts[:, 1]).mean()
