"""The server optimisers beside github.com/adap/flower: FedAvgM, FedAdam and FedYogi on the same averages."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from reference import checkout, module, tell
from torch import nn

from fedmef_dist.methods.server_optimizer import ServerOptimizer, ServerOptimizerSettings
from fedmef_dist.sparsity import ParameterSpace

_ROUNDS, _LR, _BETA1, _BETA2, _TAU = 10, 0.1, 0.9, 0.99, 1e-3


class Averaged:
    """In place of the strategy that averages: it is handed the average."""

    def __init__(self, **settings: Any) -> None:
        self.__dict__.update(settings, m_t=None, v_t=None)

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> tuple[Any, dict[str, Any]]:
        """The average that stands for the clients' results."""
        return results, {}


def strategies(path: Path) -> dict[str, Any]:
    """Their three classes, without what they import and the comparison does not need."""
    folder = path / "framework" / "py" / "flwr" / "server" / "strategy"
    for name in ("flwr", "flwr.server", "flwr.server.strategy"):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = []
    names = ["FitRes", "MetricsAggregationFn", "NDArrays", "Parameters", "Scalar"]
    same = dict.fromkeys(["ndarrays_to_parameters", "parameters_to_ndarrays"], lambda values: values)
    sys.modules["flwr.common"] = SimpleNamespace(**dict.fromkeys(names, Any), **same)
    for name in ("flwr.common.logger", "flwr.server.client_manager", "flwr.server.client_proxy"):
        sys.modules[name] = SimpleNamespace(log=lambda *_: None, ClientManager=Any, ClientProxy=Any)
    inside = "flwr.server.strategy"
    sys.modules[f"{inside}.fedopt"] = SimpleNamespace(FedOpt=Averaged)
    sys.modules[f"{inside}.fedavg"] = SimpleNamespace(FedAvg=Averaged)
    sys.modules[f"{inside}.aggregate"] = SimpleNamespace(aggregate=lambda results: results[0][0])
    files = {"FedAvgM": "fedavgm", "FedAdam": "fedadam", "FedYogi": "fedyogi"}
    return {name: getattr(module(folder / f"{file}.py", f"{inside}.{file}"), name) for name, file in files.items()}


def ours(name: str, start: np.ndarray, averages: np.ndarray) -> list[np.ndarray]:
    """The states after each round, float32 (n,)."""
    space = ParameterSpace(nn.Linear(len(start), 1, bias=False), ["weight"])
    given = {"name": name, "lr": _LR, "beta1": _BETA1} | ({} if name == "avgm" else {"beta2": _BETA2, "tau": _TAU})
    optimizer, state = ServerOptimizer(ServerOptimizerSettings(**given), space), torch.from_numpy(start)
    states = []
    for average in averages:
        state = optimizer.step(state, torch.from_numpy(average), space.mask)
        states.append(state.numpy())
    return states


def theirs(strategy: Any, averages: np.ndarray, *, like_the_paper: bool = False) -> list[np.ndarray]:
    """The states after each round; like the paper: squares from tau^2, and no correction of the bias."""
    states = []
    for number, average in enumerate(averages, start=1):
        if like_the_paper:
            strategy.v_t = strategy.v_t or [np.full_like(average, _TAU**2)]
            if type(strategy).__name__ == "FedAdam":
                strategy.eta = _LR * (1 - _BETA1 ** (number + 1)) / np.sqrt(1 - _BETA2 ** (number + 1))
        results = [([average], SimpleNamespace())]
        if type(strategy).__name__ == "FedAvgM":
            results = [(None, SimpleNamespace(parameters=[average], num_examples=1, metrics={}))]
            (state,), _ = strategy.aggregate_fit(number, results, [])
        else:
            (state,), _ = strategy.aggregate_fit(number, [average], [])
        states.append(np.asarray(state))
    return states


def main() -> None:
    """Ten rounds of 1,000 parameters of about 0.1, whose averages wander by about 0.01."""
    classes = strategies(checkout(__doc__))
    draw = np.random.default_rng(0)
    start = (0.1 * draw.standard_normal(1000)).astype(np.float32)
    averages = (start + np.cumsum(0.01 * draw.standard_normal((_ROUNDS, 1000)), axis=0)).astype(np.float32)

    def largest(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
        return float(np.abs(np.stack(found) - np.stack(expected)).max())

    momentum = classes["FedAvgM"](initial_parameters=[start], server_learning_rate=_LR, server_momentum=_BETA1)
    tell("FedAvgM", largest(theirs(momentum, averages), ours("avgm", start, averages)))
    for name, cls in (("adam", classes["FedAdam"]), ("yogi", classes["FedYogi"])):
        expected = ours(name, start, averages)
        for paper in (True, False):
            strategy = cls(initial_parameters=[start], eta=_LR, eta_l=_LR, beta_1=_BETA1, beta_2=_BETA2, tau=_TAU)
            strategy.current_weights = [start]
            found = theirs(strategy, averages, like_the_paper=paper)
            tell(
                f"{cls.__name__}{', squares from tau^2, no correction' if paper else ', as it is'}",
                largest(found, expected),
            )


if __name__ == "__main__":
    main()
