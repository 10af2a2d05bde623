"""A cluster in a few lines of YAML, for predictions about machines that nobody has measured."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from fedmef_dist.base.explanation import explain, known_keys
from fedmef_dist.base.settings import Settings
from fedmef_dist.base.trees import read_tree_file
from fedmef_dist.cluster.collective_costs import Backend, Link, Network
from fedmef_dist.cluster.environment import MOST_RANKS_OF_A_NODE

_TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_RATES = {"B/s": 1.0, "kB/s": 1e3, "MB/s": 1e6, "GB/s": 1e9, "Mbit/s": 1e6 / 8, "Gbit/s": 1e9 / 8}


def _with_unit(units: dict[str, float]) -> BeforeValidator:
    example = "2us" if "us" in units else "25GB/s"

    def read(value: Any) -> Any:
        found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(\S+)", value) if isinstance(value, str) else None
        if found is None or found[2] not in units:
            raise ValueError(f"{value!r} is not a number with one of the units {', '.join(units)}, as in {example}")
        return float(found[1]) * units[found[2]]

    return BeforeValidator(read)


class LinkSettings(Settings):
    """A link as its description gives it."""

    latency: Annotated[float, _with_unit(_TIMES), Field(ge=0, le=1)]
    bandwidth: Annotated[float, _with_unit(_RATES), Field(gt=0, le=1e15)]

    @property
    def link(self) -> Link:
        """For the formulas."""
        return Link(self.latency, self.bandwidth)


class Cluster(Settings):
    """What a prediction needs to know of a cluster.

    Attributes:
        name: for the report.
        nodes, ranks_per_node: how large it is.
        speed: of a rank, relative to a rank alone on a node where clients were measured.
        seconds_per_sample: of a rank, in place of what was measured; ``speed`` does not change it.
        inside: between two ranks of a node.
        between: between two nodes; all ranks of a node share it.
        backend: whose collectives are taken.
        jitter: relative deviation of a client's seconds; null: as measured.
    """

    name: str = Field(min_length=1, max_length=80)
    nodes: int = Field(ge=1, le=10**6)
    ranks_per_node: int = Field(ge=1, le=MOST_RANKS_OF_A_NODE)
    speed: float = Field(1.0, gt=0, le=10**6)
    seconds_per_sample: float | None = Field(None, gt=0, le=10**6)
    inside: LinkSettings
    between: LinkSettings
    backend: Backend
    jitter: float | None = Field(None, ge=0, le=2)

    @property
    def most_ranks(self) -> int:
        """Ranks of all nodes."""
        return self.nodes * self.ranks_per_node

    def network(self, ranks: int) -> Network:
        """That of so many ranks, on as few nodes as hold them."""
        return Network(ranks, self.ranks_per_node, self.inside.link, self.between.link)


def load_cluster(path: Path) -> Cluster:
    """The cluster that a file describes. Raises UserError."""
    tree = read_tree_file(path, "cluster file")
    try:
        return Cluster.model_validate(tree)
    except ValidationError as error:
        raise explain(error, tree, str(path), _hint) from None


def _hint(unknown: str) -> str:
    known = list(known_keys(Cluster))
    near = difflib.get_close_matches(unknown, known, n=1)
    return f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
