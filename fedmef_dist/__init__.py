"""Federated learning with sparse training, simulated on torch.distributed."""

from typing import TYPE_CHECKING, Any

from fedmef_dist.base.version import VERSION

if TYPE_CHECKING:
    from fedmef_dist.base.errors import UserError
    from fedmef_dist.config import Config, load_config
    from fedmef_dist.report.runs import Run, read_run
    from fedmef_dist.session.session import Summary, run

__version__ = VERSION
__all__ = ["Config", "Run", "Summary", "UserError", "load_config", "read_run", "run"]

_HOMES = {
    "Config": "config",
    "load_config": "config",
    "Run": "report.runs",
    "read_run": "report.runs",
    "UserError": "base.errors",
    "Summary": "session.session",
    "run": "session.session",
}


def __getattr__(name: str) -> Any:
    """Imports what the package offers when it is asked for: `import fedmef_dist` alone loads nothing heavy."""
    from importlib import import_module

    if name == "api":
        return import_module(f"{__name__}.api")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
