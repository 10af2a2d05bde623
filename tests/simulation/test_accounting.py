import pytest
from tiny import Run, alone, tiny

from fedmef_dist.methods.preparation import PreparationCosts
from fedmef_dist.simulation.totals import Totals


@pytest.fixture
def accounting(tmp_path):
    return Run(tiny(), alone(), tmp_path).accounting


def test_what_was_sent_and_computed_before_the_first_round_counts(accounting):
    dense = [layer.size for layer in accounting.space.layers]
    half = [size // 2 for size in dense]
    totals = Totals()
    accounting.prepare(PreparationCosts(up=3, down=4, forwards=[(dense, 2), (half, 5)], gradient_samples=7), totals)
    flops = accounting.flops
    passes = flops.sample(dense)
    selection = 7 * flops.round(dense, samples=0, steps=0, gradient_samples=1).selection
    assert totals.wire_bytes == 7
    assert totals.flops == pytest.approx(
        2 * flops.forward(dense) + 5 * flops.forward(half) + 7 * (passes.forward + passes.backward) + selection
    )
    assert flops.forward(half) < flops.forward(dense)


def test_nothing_is_counted_where_nothing_was_done(accounting):
    totals = Totals()
    accounting.prepare(PreparationCosts(), totals)
    assert (totals.wire_bytes, totals.flops) == (0, 0)
