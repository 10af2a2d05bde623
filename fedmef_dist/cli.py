"""The command line. Heavy imports wait until a command needs them."""

import errno
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.names import plain_path
from fedmef_dist.base.notices import tell
from fedmef_dist.base.streams import open_standard_streams
from fedmef_dist.base.version import VERSION
from fedmef_dist.cluster.ending import FAULT, INTERRUPTED, give_up_output
from fedmef_dist.cluster.environment import MOST_RANKS, MOST_RANKS_OF_A_NODE, detect

_ALLOW_PLUGINS = "import and run the code that the run directory names, such as a model of your own"
# Typer shows mistakes on the command line in a box of many lines and does not export their class.
_UsageError: Any = typer.BadParameter.__base__

# An override in the form of an option, as `wandb agent` writes it: a dotted key, or one of those without a section.
_OVERRIDE = re.compile(r"--(?=([A-Za-z_]\w*(\.[A-Za-z_]\w*)+|name|seed|callbacks)=)")

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Federated learning with sparse training, simulated on torch.distributed.",
)


def _plain(path: Path | None) -> Path | None:
    return None if path is None else plain_path(path, "command line")


def _greet() -> None:
    """One line at once, for who waits at a terminal: on a busy machine the imports alone take long."""
    if sys.stdout.isatty() and detect(os.environ).rank == 0:
        print(f"fedmef-dist {VERSION} starts: loads PyTorch and the data, measures a training step", flush=True)


@app.callback()
def every_command(
    show_version: Annotated[bool, typer.Option("--version", help="print the versions and exit")] = False,
) -> None:
    """Options that stand before or behind any command; :func:`main` looks for them."""


ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with the configuration")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[section.key=value ...]", help="changes to it")]


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(callback=_plain, help="default: runs/<name>")] = None,
    resume: Annotated[
        Literal["auto", "never", "must"], typer.Option(help="whether to go on from a checkpoint that is there")
    ] = "auto",
    fork: Annotated[
        Path | None,
        typer.Option(callback=_plain, metavar="RUN_DIR", help="go on from this run's newest checkpoint, elsewhere"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print nothing but warnings and errors")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="also print what rank 0 writes into its log")
    ] = False,
) -> None:
    """Run one simulation: alone, or as each rank under torchrun, mpirun or srun."""
    if not quiet:
        _greet()
    from fedmef_dist.session.session import run_command

    forked = [] if fork is None else [f"fork={json.dumps(str(fork))}"]
    run_command(config, [*(overrides or []), *forked], run_dir, resume, quiet=quiet, verbose=verbose)


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=1, max=MOST_RANKS, help="ranks that would share the clients")] = 1,
    out: Annotated[
        Path | None, typer.Option(callback=_plain, metavar="FILE.png", help="also draw the partition")
    ] = None,
) -> None:
    """Show what a run would be like: who holds what, what a round moves and computes, how ranks share it."""
    from fedmef_dist.commands.plan import plan_command

    plan_command(config, overrides or [], ranks, out)


@app.command()
def memory(
    config: ConfigPath,
    overrides: Overrides = None,
    json: Annotated[bool, typer.Option("--json", help="print a list of objects for programs")] = False,
    out: Annotated[
        Path | None, typer.Option(callback=_plain, metavar="FILE.png", help="also draw the parts as bars, or the plans")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="timed steps of each method")] = 3,
    budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="also plan a step that takes no more than this, such as 150MB")
    ] = None,
) -> None:
    """Measure one training step under several methods: bytes held for backward, allocator peak, modelled bytes."""
    from fedmef_dist.commands.memory import memory_command

    memory_command(config, overrides or [], json, out, steps, budget)


@app.command()
def data(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(callback=_plain, metavar="DIR", help="default: runs/<name>-data")] = None,
) -> None:
    """Show the data as the network sees them: counts, what was passed over, duplicates, clients, a page of pictures."""
    from fedmef_dist.commands.data import data_command

    data_command(config, overrides or [], out)


@app.command()
def compare(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR ...", help="directories of runs")],
    out: Annotated[Path | None, typer.Option(callback=_plain, help="where tables and plots go")] = None,
    target: Annotated[
        float | None,
        typer.Option(metavar="ACCURACY", help="a share such as 0.75; default: 95 % of the best, rounded down"),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="GROUP", help="a group's name, or a part of it: differences paired by seed")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="lay the runs along this setting; the baseline is then that of the same value"
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="FLOPS,DOWN,UP", help="FLOPs and bytes a second: accuracy over a device's modelled time"),
    ] = None,
) -> None:
    """Write one page, tables (Markdown, CSV) and plots over runs: accuracy, costs, memory, masks, time."""
    from fedmef_dist.report import compare as compare_runs

    compare_runs(run_dirs, out, target, baseline, by, device)


@app.command()
def check(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="its name, or package.module:Class")],
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="the runs to play; default: a small configuration")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Hold a method to the simulator's promises: same bits on 1, 2, 3 ranks and after a resume, ledger, masks."""
    from fedmef_dist.commands.check import check_command

    given = overrides or []
    if config is not None and "=" in config and not os.path.lexists(config):  # the first of the changes
        raise typer.Exit(check_command(method, None, [config, *given]))
    raise typer.Exit(check_command(method, None if config is None else Path(config), given))


@app.command()
def status(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR ...", help="directories of runs")],
    verify: Annotated[bool, typer.Option("--verify", help="read everything; status 1 if there is a gap")] = False,
    json: Annotated[bool, typer.Option("--json", help="print a list of objects for programs")] = False,
) -> None:
    """Tell whether runs are running, hung, stopped, finished or damaged, how far they have got, and how to go on."""
    from fedmef_dist.commands.status import status as show_status

    raise typer.Exit(show_status(run_dirs, verify, json))


@app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", callback=_plain, help="where to write; default: here")
    ] = Path(),
) -> None:
    """Write a folder to start from: configurations, and an own method, model, data set, tracker, callback that run."""
    from fedmef_dist.commands.init import init_command

    init_command(folder)


@app.command()
def doctor() -> None:
    """Show what launcher, rank, device and network were found, and try one all-reduce."""
    from fedmef_dist.commands.doctor import doctor as examine

    raise typer.Exit(examine())


@app.command()
def schema(
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="only this method's keys: a name, or package.module:Name")
    ] = None,
) -> None:
    """Print the JSON Schema of the configuration, for editors."""
    import json

    from fedmef_dist.config import schema as schema_of

    print(json.dumps(schema_of(method), indent=2))


RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="directory of a run")]
SavedRound = Annotated[int | None, typer.Option("--round", min=1, help="whose checkpoint; default: the newest")]
AllowPlugins = Annotated[bool, typer.Option("--allow-plugins", help=_ALLOW_PLUGINS)]


@app.command()
def evaluate(
    run_dir: RunDir,
    saved_round: SavedRound = None,
    per_client: Annotated[
        bool, typer.Option("--per-client", help="also test every client on its own data: CSV, a row a client")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(callback=_plain, metavar="FILE.csv", help="for --per-client; default: RUN_DIR/report/clients.csv"),
    ] = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Test a saved model: accuracy and loss on the test set, and client by client."""
    from fedmef_dist.commands.evaluate import evaluate_command

    evaluate_command(run_dir, saved_round, per_client, out, allow_plugins)


@app.command()
def export(
    run_dir: RunDir,
    out: Annotated[Path, typer.Option(callback=_plain, help="safetensors file to write")],
    saved_round: SavedRound = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Write the trained sparse model as safetensors with the plain names of its model."""
    from fedmef_dist.session.export import export as export_run

    export_run(run_dir, out, saved_round, allow_plugins=allow_plugins)


@app.command("wandb-sync")
def wandb_sync(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="directory of a run")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be sent; send nothing")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="go on with new rounds until the run has finished, as on a login node")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="between two looks with --watch")] = 30.0,
) -> None:
    """Send a run to Weights & Biases as one without gaps, from metrics.jsonl, whatever was killed."""
    from fedmef_dist.commands.wandb_sync import wandb_sync as send

    raise typer.Exit(send(run_dir, dry_run, watch, every))


@app.command()
def sweep(
    grid: Annotated[Path, typer.Argument(metavar="GRID", help="YAML file with config, runs and grid")],
    overrides: Overrides = None,
    cell: Annotated[int | None, typer.Option(help="run only this cell, counted from 0; under any launcher")] = None,
    show: Annotated[bool, typer.Option("--list", help="show the cells and how far they are; run nothing")] = False,
    ranks: Annotated[
        int, typer.Option(min=1, max=MOST_RANKS_OF_A_NODE, help="ranks on this machine that run each cell")
    ] = 1,
) -> None:
    """Run every cell of a grid, one after another; finished ones are skipped, half-done ones go on."""
    from fedmef_dist.session.sweep import load_sweep, run_cell, run_sweep, show_cells

    loaded = load_sweep(grid, overrides or [])
    if show:
        raise typer.Exit(show_cells(loaded))
    elif cell is not None:
        run_cell(loaded, cell)
    else:
        raise typer.Exit(run_sweep(loaded, overrides or [], ranks))


@app.command()
def submit(
    config: ConfigPath,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(help="nodes of the job")] = 1,
    ntasks_per_node: Annotated[
        int | None, typer.Option(help="ranks a node; default: one a GPU, or one without GPUs")
    ] = None,
    cpus_per_task: Annotated[int, typer.Option(help="threads of a rank")] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of a node; ranks take them by local number")] = 0,
    time: Annotated[
        str, typer.Option(help="limit; two minutes before it the run saves and goes back into the queue")
    ] = "4:00:00",
    run_dir: Annotated[Path | None, typer.Option(callback=_plain, help="default: runs/<name>")] = None,
    array: Annotated[Path | None, typer.Option(metavar="GRID", help="a job for each cell of this grid file")] = None,
    max_restarts: Annotated[int, typer.Option(min=0, help="requeues after a signal, at most")] = 20,
    dry_run: Annotated[bool, typer.Option(help="print the batch script; write and submit nothing")] = False,
) -> None:
    """Write a batch script into the run directory and submit it to Slurm."""
    from fedmef_dist.submission.script import Job
    from fedmef_dist.submission.submit import submit as submit_job

    job = Job(
        nodes=nodes,
        ntasks_per_node=ntasks_per_node if ntasks_per_node is not None else gpus_per_node or 1,
        cpus_per_task=cpus_per_task,
        gpus_per_node=gpus_per_node,
        time=time,
    )
    submit_job(config, overrides or [], job, run_dir=run_dir, grid=array, max_restarts=max_restarts, dry_run=dry_run)


@app.command()
def scale(
    config: ConfigPath,
    overrides: Overrides = None,
    ranks: Annotated[str, typer.Option(help="numbers of ranks")] = "1,2",
    clients: Annotated[str, typer.Option(help="sizes of the population; none: only the configuration's")] = "",
    repeats: Annotated[int, typer.Option(min=1, help="runs of each point, which take turns")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="measured rounds of a run, after one to warm up")] = 5,
    out: Annotated[Path | None, typer.Option(callback=_plain, help="default: runs/<name>-scaling")] = None,
    predict: Annotated[str, typer.Option(help="numbers of ranks, as 64,512,4096; none: doublings of --ranks")] = "",
    cluster: Annotated[
        Path | None, typer.Option(callback=_plain, metavar="FILE.yaml", help="the cluster meant, see configs/clusters/")
    ] = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="replay what is predicted in SimGrid too")] = False,
    lone_rank: Annotated[
        bool, typer.Option("--lone-rank", help="play one rank of the most predicted for real, without the others")
    ] = False,
    hosts: Annotated[str, typer.Option(help="where mpirun starts ranks, as node1:8,node2:8; see MPIRUN")] = "",
) -> None:
    """Measure strong and weak scaling, fit a cost model, predict larger clusters; on this machine or an allocation.

    With runtime.backend=mpi, and on hosts that --hosts names, mpirun starts the ranks; MPIRUN="mpirun --bind-to core"
    in the environment adds options to it.
    """
    from fedmef_dist.scaling.scale import Outlook
    from fedmef_dist.scaling.scale import scale as run_study

    outlook = Outlook(predict, cluster, simulate, lone_rank)
    run_study(config, overrides or [], ranks, clients, repeats, rounds, out, outlook, hosts)


@app.command(hidden=True)
def probe(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(callback=_plain, help="what rank 0 writes")] = Path("probe.json"),
) -> None:
    """How long all-reduces take between these ranks; a part of `scale`."""
    from fedmef_dist.scaling.probe import probe as run_probe

    run_probe(config, overrides or [], out)


@app.command(hidden=True)
def lone_rank(
    config: ConfigPath,
    overrides: Overrides = None,
    rank: Annotated[int, typer.Option(min=0, help="which one this is")] = 17,
    ranks: Annotated[int, typer.Option(min=1, max=MOST_RANKS, help="of how many")] = 4096,
    ranks_per_node: Annotated[int, typer.Option(min=1, help="of which share a node")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="to be played")] = 4,
    out: Annotated[Path, typer.Option(callback=_plain, help="the file that is written")] = Path("lone-rank.json"),
) -> None:
    """Play one rank of many for real, without the others; a part of `scale`."""
    from fedmef_dist.session.lone_rank import play_lone_rank

    play_lone_rank(config, overrides or [], rank, ranks, ranks_per_node, rounds, out)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command that the arguments ask for; wrong input ends with exit status 2 and its message.

    Leaves by SystemExit; `__main__` ends the process. ``arguments`` are the process's own by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    open_standard_streams()
    # A lost connection is explained in one line of our own; torch would add a C++ stack for each attempt to use it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        if "--version" in given:
            print(f"fedmef-dist {VERSION}, torch {version('torch')}, Python {platform.python_version()}")
            sys.exit(0)
        sys.exit(app([_OVERRIDE.sub("", argument) for argument in given], standalone_mode=False))
    except UserError as error:
        message = str(error)
    except _UsageError as error:
        # Without arguments the help has been shown, and the message is empty.
        message = error.format_message().replace("Value error, ", "")
        message = f"{message}\nwhere: command line\nmend: see --help" if message else ""
    except OSError as error:
        # Of what a command reads and writes it says itself what is wrong; what is left is its output.
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO, errno.EPIPE):
            raise
        give_up_output()
        if error.errno != errno.EPIPE:
            tell(f"what was printed is not complete: {error.strerror}")
        sys.exit(FAULT)
    except typer.Abort:
        sys.exit(INTERRUPTED)
    if message:
        sys.stderr.write(f"{message}\n")  # one write, or messages of several ranks mix
    sys.exit(2)
