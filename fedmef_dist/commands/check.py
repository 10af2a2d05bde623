"""The command ``check``: does a method keep the simulator's promises."""

from copy import deepcopy
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedmef_dist.base.text import printable
from fedmef_dist.config import Config, apply_overrides, load_config, parse_config
from fedmef_dist.methods.registry import settings_of
from fedmef_dist.session.conformance import check_method

# Six rounds, three of which may adjust, in some seconds.
_SMALL = {
    "name": "check",
    "data": {
        "dataset": "synthetic",
        "augment": False,
        "synthetic": {"samples": 160, "test_samples": 50, "classes": 4, "channels": 1, "image_size": 8},
    },
    "model": {"name": "resnet8", "width": 0.25},
    "federation": {"clients": 8, "clients_per_round": 4, "rounds": 6, "local_epochs": 1, "batch_size": 16},
    "optimizer": {"lr": 0.1},
    "evaluation": {"every": 2},
    "tracking": {"console": False, "wandb": {"mode": "disabled"}},
}
_OFTEN = {"density": 0.5, "adjust_every": 2, "adjust_until": 7, "initial_steps": 2, "initial_adjustments": 1}


def check_command(method: str, path: Path | None, overrides: list[str]) -> int:
    """Prints a line for each promise; returns 0 where all are kept, else 1.

    Args:
        method: a method's name, or ``package.module:Class``.
        path: the configuration to play; None: a small one with synthetic images.
        overrides: changes to it.

    Raises:
        UserError: method or configuration are wrong.
    """
    promises, costs = check_method(configuration(method, path, overrides))
    table = Table(box=None, pad_edge=False)
    table.add_column("promise", no_wrap=True)
    table.add_column("kept", no_wrap=True)
    table.add_column("what is wrong, and how to mend it")
    for promise in promises:
        # What a stranger's code raises may look like markup.
        told = escape(printable(promise.broken or ""))
        broken = "" if promise.broken is None else f"{told}\n[dim]{escape(promise.mend)}[/dim]"
        table.add_row(promise.name, "[green]yes[/green]" if promise.broken is None else "[red]NO[/red]", broken)
    console = Console(highlight=False)
    console.print(f"method {escape(printable(method))}")
    console.print(table)
    if costs:
        up, down = costs["wire/up_bytes"], costs["wire/down_bytes"]
        console.print(f"a round: {costs['seconds']:.3f} s, {up:,.0f} bytes up, {down:,.0f} bytes down")
    return int(any(promise.broken is not None for promise in promises))


def configuration(method: str, path: Path | None, overrides: list[str]) -> Config:
    """The configuration that is played for a method. Raises UserError."""
    if path is not None:
        return load_config(path, [*overrides, f"method.name={method}"])
    fields = settings_of(method).model_fields
    section = {"name": method, **{key: value for key, value in _OFTEN.items() if key in fields}}
    tree = deepcopy({**_SMALL, "method": section})
    apply_overrides(tree, overrides)
    return parse_config(tree, "check")
