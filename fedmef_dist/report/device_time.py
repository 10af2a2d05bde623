"""How long a round would take on a device of a given speed, modelled from the ledgers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from fedmef_dist.base.errors import UserError
from fedmef_dist.report.quantities import per_client
from fedmef_dist.report.runs import Run

SECONDS = "device/seconds"


@dataclass(frozen=True)
class Device:
    """FLOPs that a device computes, and bytes that it receives and sends, in a second."""

    flops: float
    down: float
    up: float


def parse_device(text: str) -> Device:
    """``FLOPS,DOWN,UP``, such as 5e9,2.5e6,1e6. Raises UserError where it is not three positive numbers."""
    try:
        flops, down, up = (float(part) for part in text.split(","))
        if not all(0 < number < inf for number in (flops, down, up)):
            raise ValueError
    except ValueError:
        raise UserError(
            f"{text!r} is no device",
            where="--device",
            mend="give FLOPs, bytes down and bytes up a second, such as 5e9,2.5e6,1e6",
        ) from None
    return Device(flops, down, up)


def with_device_seconds(run: Run, device: Device) -> Run:
    """The run with `SECONDS` in each round: the seconds of all rounds until then of a device that does a client's mean.

    A round takes what the mean client receives, computes and sends, one after the other; where nobody trained it takes
    nothing. What a method does before round 1 is not in it. A run whose rounds lack one of the numbers stays as it is.
    """
    rounds, seconds = [], 0.0
    for line in run.metrics:
        if any(line.get(key) is None for key in ("clients/trained", *_KEYS)):
            return run
        seconds += _round_seconds(line, device)
        rounds.append({**line, SECONDS: seconds})
    return replace(run, metrics=rounds)


_KEYS = ("wire/down_bytes", "flops/train", "wire/up_bytes")


def _round_seconds(line: Mapping[str, Any], device: Device) -> float:
    down, flops, up = (per_client(line, key) or 0.0 for key in _KEYS)
    return down / device.down + flops / device.flops + up / device.up
