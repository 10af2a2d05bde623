"""FedAvg and FedMef, as published and balanced within filters, in plain PyTorch replay the first rounds of a real run,
without the package's layers, flat vector, sums, wire and methods.

The replay takes from the run what is drawn (start weights, first mask, cohorts, batches) and computes all else with
torch's functions and autograd: NSConv, activation pruning, masked SGD, extrusion, top gradients, average and swap.
"""

from math import ceil, cos, pi, sqrt

import pytest
import torch
from tiny import tiny
from torch.nn import functional as F

from fedmef_dist.clients.cohort import draw_cohort
from fedmef_dist.cluster.thread_ranks import ThreadRanks
from fedmef_dist.data.batches import client_batches
from fedmef_dist.simulation.loop import Simulation

ROUNDS, RATE, DECAY, LAMBDA, PRUNED = 4, 0.1, 0.998, 1.0, 0.5
PRUNABLE = ["conv1.weight", "conv2.weight", "hidden.weight"]
CENTRED = PRUNABLE[:2]


def normalised(theta, gain, mask):
    """NSConv: gamma g (theta - mu) / sqrt(max(N var, eps)) over a filter's active weights; g theta below two of them.

    An inactive weight acts as 0, and has the gradient that it would have as an active one without effect.
    """
    gamma, rows, active = sqrt(2 / (1 - 1 / pi)), theta.flatten(1), mask.flatten(1).float()
    count = active.sum(1, keepdim=True)
    deviation = (rows - rows.sum(1, keepdim=True) / count.clamp(min=1)) * active
    absent = (rows - rows.detach()) * (1 - active)
    scaled = gamma * (deviation + absent) / deviation.square().sum(1, keepdim=True).clamp(min=1e-4).sqrt()
    return (torch.where(count > 1, scaled, rows) * gain.unsqueeze(1)).view_as(theta)


def pruned_product(product, x, weight):
    """The product, whose weight gradient sees the largest half of the input and whose input gradient is exact."""
    flat = storage_order(x.detach()).abs()
    kept = flat.topk(round((1 - PRUNED) * flat.numel())).values.min()
    sparse = x.detach() * (x.detach().abs() >= kept)
    through_weight, through_input = product(sparse, weight), product(x, weight.detach())
    return through_input + through_weight - through_weight.detach()


def network(p, masks, x, sparse):
    """The logits of `cnn`; with ``sparse`` FedMef's layers: NSConv, and pruned inputs of all but the first and last."""

    def layer(name, x, product, prunes):
        weight = p[f"{name}.weight"]
        if sparse and f"{name}.gain" in p:
            weight = normalised(weight, p[f"{name}.gain"], masks[f"{name}.weight"])
        out = pruned_product(product, x, weight) if sparse and prunes else product(x, weight)
        return out + p[f"{name}.bias"].view(1, -1, *[1] * (out.dim() - 2))

    def convolve(x, weight):
        return F.conv2d(x, weight, padding=2)

    x = F.max_pool2d(F.relu(layer("conv1", x, convolve, False)), 2)
    x = F.max_pool2d(F.relu(layer("conv2", x, convolve, True)), 2).flatten(1)
    x = F.relu(layer("hidden", x, F.linear, True))
    return layer("output", x, F.linear, False)


def storage_order(tensor):
    """One dimension, a convolution's as O, H, W, I: ties go to the lower position."""
    return (tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor).flatten()


def largest(scores, count):
    """Where the ``count`` largest scores are, bool like them."""
    order = storage_order(scores).argsort(descending=True, stable=True)[:count]
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    chosen[order] = True
    if scores.dim() == 4:
        outputs, inputs, *kernel = scores.shape
        return chosen.view(outputs, *kernel, inputs).permute(0, 3, 1, 2)
    return chosen.view(scores.shape)


def largest_in_filters(scores, counts):
    """Where the ``counts`` (one a filter) largest scores of every filter are, bool like them."""
    ranks = scores.flatten(1).argsort(1, descending=True).argsort(1)
    return (ranks < counts.unsqueeze(1)).view(scores.shape)


def by_channel(gradient):
    """Magnitudes over their root mean square along each input channel."""
    readers = [dimension for dimension in range(gradient.dim()) if dimension != 1]
    return gradient.abs() / gradient.square().mean(readers, keepdim=True).sqrt().clamp(min=1e-12)


def centres(name, theta, mask, form):
    """What a weight is measured from: its filter's mean, where two are active and a layer centres; 0 as published."""
    if form == "published" or name not in CENTRED:
        return torch.zeros_like(theta)
    rows, active = theta.flatten(1), mask.flatten(1)
    count = active.sum(1, keepdim=True)
    mean = (rows * active).sum(1, keepdim=True) / count.clamp(min=1)
    return torch.where(count > 1, mean, 0).expand_as(rows).view(theta.shape)


def mark(theta, gain, mask, share, form):
    """The weakest active weights: of the layer, or of what filters can swap that keep two of them."""
    if form == "published":
        count = min(int(share * int(mask.sum())), int((~mask).sum()))
        return largest(-theta.abs() - 1e9 * ~mask, count)
    active = mask.flatten(1).sum(1)
    able = torch.minimum(active - 2, mask[0].numel() - active).clamp(min=0)
    acting = theta if gain is None else normalised(theta, gain, mask)
    weakness = -acting.abs() - 1e9 * ~mask
    may_go = largest_in_filters(weakness, able)
    return largest(weakness - 1e9 * ~may_go, min(int(share * int(mask.sum())), int(able.sum())))


def grow(gradient, mask, marked, form):
    """The inactive weights of largest gradient: as many as the layer loses, or as each filter does."""
    if form == "published":
        return largest(gradient.abs() - 1e9 * mask, int(marked.sum()))
    return largest_in_filters(by_channel(gradient) - 1e9 * mask, marked.flatten(1).sum(1))


def gradients(p, masks, batch, sparse):
    """Of the loss in every parameter."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in p.items()}
    loss = F.cross_entropy(network(leaves, masks, batch[0], sparse), batch[1])
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def train(start, masks, marked, batches, steps, rate, form):
    """One client's SGD; in an adjusting round with the penalty on marked weights and REX's larger rate.

    Returns what it ends with, and the sum of its gradients, penalty not included.
    """
    p = {name: value.clone() for name, value in start.items()}
    total = {name: torch.zeros_like(value) for name, value in p.items()}
    for step, batch in zip(range(steps), batches, strict=False):
        found, speed = gradients(p, masks, batch, form is not None), rate
        for name, value in found.items():
            total[name] += value
        if marked:
            leaves = [p[name].clone().requires_grad_() for name in PRUNABLE]
            low = torch.cat(
                [
                    (theta - centres(name, theta, masks[name], form))[marked[name]]
                    for name, theta in zip(PRUNABLE, leaves, strict=True)
                ]
            )
            profile = (2 * steps - 2 * step) / (2 * steps - step)
            speed = max(rate, profile * RATE * float(2 * torch.sigmoid(low.detach().norm()) - 1))
            penalties = torch.autograd.grad(LAMBDA * low.square().sum(), leaves)
            for name, penalty in zip(PRUNABLE, penalties, strict=True):
                found[name] = found[name] + penalty
        for name, value in p.items():
            value -= speed * found[name] * masks.get(name, 1)
    return p, total


def replay(run, form):
    """The global parameters and masks after each round, as the algorithms' papers have them."""
    config, federation = run.config, run.config.federation
    run.space.load(run.server.values)
    p = {name: value.detach().clone() for name, value in run.model.named_parameters()}
    sparse = form is not None
    layers = {layer.name: layer for layer in run.space.layers}
    masks = {name: layers[name].view(run.space.mask.active).clone() for name in PRUNABLE} if sparse else {}
    for number in range(1, ROUNDS + 1):
        share = 0.4 / 2 * (1 + cos(pi * number / 6)) if sparse and number % 2 == 0 else 0
        marked = {
            name: mark(p[name], p.get(name.replace("weight", "gain")), mask, share, form)
            for name, mask in masks.items()
            if share
        }
        cohort = draw_cohort(run.population, federation, config.seed, number)
        mean = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in p.items()}
        wanted = {name: torch.zeros_like(p[name], dtype=torch.float64) for name in marked}
        for client, size in zip(cohort.clients.tolist(), cohort.samples.tolist(), strict=True):
            batches = iter(
                client_batches(
                    run.dataset,
                    run.population.samples(client),
                    batch_size=16,
                    epochs=2,
                    seed=config.seed,
                    round=number,
                    client=client,
                    augment=False,
                    device=torch.device("cpu"),
                )
            )
            own, total = train(p, masks, marked, batches, ceil(size / 16), RATE * DECAY ** (number - 1), form)
            weight = size / cohort.samples.sum()
            for name, value in own.items():
                mean[name] += weight * value.double()
            found = gradients(own, masks, next(batches), sparse) if marked and form == "published" else total
            for name, leaving in marked.items():
                wanted[name] += weight * found[name].double() * grow(found[name], masks[name], leaving, form)
        p = {name: value.float() for name, value in mean.items()}
        for name, leaving in marked.items():
            grown, kept = grow(wanted[name], masks[name], leaving, form), masks[name] & ~leaving
            p[name] = (p[name] * kept).contiguous()
            p[name] = torch.where(grown, centres(name, p[name], kept, form), p[name])
            masks[name] = kept | grown
        yield p, dict(masks)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("form", [None, "published", "balanced"])
def test_a_plain_loop_finds_the_same(form, ranks):
    """FedAvg where there is no form."""
    fedmef = {"name": "fedmef", "form": form, "density": 0.5, "adjust_every": 2, "adjust_until": 6}
    config = tiny(method=fedmef if form else {"name": "fedavg"}, federation={"rounds": ROUNDS})

    def play(run):
        run.start()
        expected = list(replay(run, form)) if run.group.rank == 0 else []
        differences = []
        for run.round in range(1, ROUNDS + 1):
            run.play_round()
            run.space.load(run.server.values)
            if expected:
                p, masks = expected[run.round - 1]
                for layer in run.space.layers if masks else []:
                    assert torch.equal(layer.view(run.space.mask.active), masks[layer.name])
                mine = dict(run.model.named_parameters())
                differences.append(max(float((mine[key].detach() - value).abs().max()) for key, value in p.items()))
        return differences

    team = ThreadRanks(ranks)
    differences = team.run([Simulation(config, group) for group in team.groups], play)[0]
    assert max(differences) < 2e-7, differences
