"""The command line. Heavy imports wait until a command needs them."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fedmef_dist.errors import UserError

_INTERRUPTED = 130
# Typer shows mistakes on the command line in a box of many lines and does not export their class.
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated learning with sparse training, simulated on torch.distributed.",
)
ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with the configuration")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[section.key=value ...]", help="changes to it")]


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="default: runs/<name>")] = None,
    resume: Annotated[str, typer.Option(help="auto, never or must continue from a checkpoint")] = "auto",
) -> None:
    """Run one simulation: alone, or as each rank under torchrun, mpirun or srun."""
    from fedmef_dist.session import run_command

    run_command(config, overrides or [], run_dir, _resume(resume))


def _resume(text: str) -> Literal["auto", "never", "must"]:
    match text:
        case "auto" | "never" | "must":
            return text
    raise UserError(f"unknown value {text!r}\nwhere: --resume\nmend: use auto, never or must")


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=1, help="ranks that would share the clients")] = 1,
    out: Annotated[Path | None, typer.Option(metavar="FILE.png", help="also draw the partition")] = None,
) -> None:
    """Show what a run would be like: who holds what, what a round moves and computes, how ranks share it."""
    from fedmef_dist.plan import plan_command

    plan_command(config, overrides or [], ranks, out)


@app.command()
def compare(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR ...", help="directories of runs")],
    out: Annotated[Path | None, typer.Option(help="where tables and plots go")] = None,
) -> None:
    """Write tables (Markdown, CSV) and plots (PNG) over runs."""
    from fedmef_dist.report import compare as compare_runs

    compare_runs(run_dirs, out)


@app.command()
def doctor() -> None:
    """Show what launcher, rank, device and network were found, and try one all-reduce."""
    from fedmef_dist.doctor import doctor as examine

    raise typer.Exit(examine())


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    import json

    from fedmef_dist.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="directory of a run")],
    out: Annotated[Path, typer.Option(help="safetensors file to write")],
) -> None:
    """Write the trained sparse model as safetensors with the plain names of its model."""
    from fedmef_dist.export import export as export_run

    export_run(run_dir, out)


def main() -> None:
    """Entry point; wrong input ends with exit status 2 and its message."""
    try:
        sys.exit(app(standalone_mode=False))
    except UserError as error:
        message = str(error)
    except _UsageError as error:
        # Without arguments the help has been shown, and the message is empty.
        message = f"{error.format_message()}\nwhere: command line\nmend: see --help" if error.format_message() else ""
    except typer.Abort:
        sys.exit(_INTERRUPTED)
    if message:
        print(message, file=sys.stderr)
    sys.exit(2)
