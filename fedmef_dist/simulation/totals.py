"""What adds up over the rounds of a run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from fedmef_dist.tracking.tracker import Metrics


@dataclass
class Totals:
    """What adds up over the rounds of a run, and survives in its checkpoints.

    Attributes:
        wire_bytes: encoded bytes between server and clients.
        models_sent: to clients and back.
        flops: of the simulated devices.
        seconds: of the rounds.
        best_accuracy: on the test set; 0 before the first test.
        last: every metric's last value.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)

    wire_bytes: int = 0
    models_sent: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    best_accuracy: float = 0.0
    last: Metrics = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """All of it."""
        return vars(self).copy()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state` gave. Raises ValueError where a value is not of its type."""
        found = TypeAdapter(Totals).validate_json(json.dumps(dict(state)), strict=True)
        vars(self).update(vars(found))
