import torch

from fedmef_dist.layers.activation_pruning import Pruning, SapSettings
from fedmef_dist.layers.recompute import recomputed_blocks
from fedmef_dist.models import ModelSettings, build_model
from fedmef_dist.models.plan import MemoryPlan, apply_plan, plannable_layers


def network(recompute="blocks"):
    sap = SapSettings(enabled=True, prune_ratio=0.0, scope="sample")
    settings = ModelSettings(name="resnet8", recompute=recompute)
    return build_model(settings, sap, norm="nsconv", classes=10, shape=(3, 16, 16), seed=0)


def test_a_plan_sets_layers_and_blocks_and_another_sets_them_anew():
    model = network()
    names = list(plannable_layers(network("none")))
    assert names == [f"stages.{block}.conv{conv}" for block in range(3) for conv in (1, 2)]
    plan = MemoryPlan({names[0]: None, names[1]: 0.0, names[2]: 0.7}, frozenset({"stages.1"}))
    assert not plan.is_exact
    for _ in range(2):
        apply_plan(model, plan)
        found = [model.get_submodule(name).pruning for name in names[:3]]
        sample = {"per_sample": True}
        assert found == [Pruning(**sample), Pruning(packs=True, **sample), Pruning(0.7, **sample)]
        assert found[0].is_dense
        assert [block.recomputes for block in recomputed_blocks(model).values()] == [False, True, False]
        apply_plan(model, MemoryPlan(dict.fromkeys(names, 0.0), frozenset()))
    assert set(plannable_layers(model)) == set(names)
    assert not plannable_layers(network())  # inside of blocks nothing is packed


def test_exact_plans_change_no_bit():
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    gradients = []
    for forms, blocks in (((None, None), ()), ((0.0, None), ("stages.0",)), ((0.0, 0.0), ("stages.1", "stages.2"))):
        model = network()
        names = list(plannable_layers(network("none")))
        apply_plan(model, MemoryPlan(dict(zip(names, forms * 3, strict=True)), frozenset(blocks)))
        model(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for found in gradients[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, gradients[0], strict=True))
