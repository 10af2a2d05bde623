import pytest
import torch

from fedmef_dist.clients.loss import cross_entropy


def test_text_counts_every_token_by_hand():
    # Certain of the right class, even odds between two, and three to one against.
    logits = torch.tensor([[[50.0, 0.0], [0.0, 0.0]], [[0.0, torch.tensor(3.0).log()], [0.0, 50.0]]])
    targets = torch.tensor([[0, 1], [0, 1]])
    total = torch.tensor(2.0).log() + torch.tensor(4.0).log()
    assert cross_entropy(logits, targets, "sum").item() == pytest.approx(total.item())
    assert cross_entropy(logits, targets).item() == pytest.approx(total.item() / 4)


def test_images_are_as_ever():
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 2, 0])
    assert torch.equal(cross_entropy(logits, labels), torch.nn.functional.cross_entropy(logits, labels))
