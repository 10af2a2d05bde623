"""The command ``evaluate``: how a saved model does, on the test set and client by client."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from fedmef_dist.base.atomic import write_text
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.text import printable
from fedmef_dist.session.evaluation import ClientResult, Evaluated, evaluate_run

_SHOWN = 5


def evaluate_command(
    run_dir: Path, round_number: int | None, per_client: bool, out: Path | None, allow_plugins: bool
) -> None:
    """Print what a run's checkpoint scores; with ``per_client`` also write a row a client into ``out``.

    ``out`` defaults to ``report/clients.csv`` in the run's directory. Raises UserError.
    """
    found = evaluate_run(run_dir, round_number, per_client=per_client, allow_plugins=allow_plugins)
    print(f"{printable(str(run_dir))}: round {found.round}, digest {found.digest[:16]}")
    print(f"accuracy {found.quality['eval/accuracy']:.4f}, loss {found.quality['eval/loss']:.4f}", end="")
    perplexity = found.quality.get("eval/perplexity")
    print(
        f"{'' if perplexity is None else f', perplexity {perplexity:.2f}'}, on {found.predictions:,} test predictions"
    )
    if found.clients is not None:
        print(*_client_lines(found, found.clients), sep="\n")
        print(printable(str(_write(out or run_dir / "report" / "clients.csv", found.clients))))


def _client_lines(found: Evaluated, clients: Sequence[ClientResult]) -> list[str]:
    tested = [one for one in clients if one.tested]
    if not tested:
        return [f"none of {len(clients):,} clients has data of its own to be tested on"]
    mean, deviation, worst = (found.spread[f"eval/client_accuracy_{name}"] for name in ("mean", "std", "worst_decile"))
    data = "their own test samples" if found.on_test_samples else "the samples that they train on"
    lowest = sorted(tested, key=lambda one: one.right / one.tested)[:_SHOWN]
    return [
        f"{len(tested):,} of {len(clients):,} clients on {data}: mean {mean:.4f}, standard deviation "
        f"{deviation:.4f}, worst tenth {worst:.4f}",
        "lowest: " + ", ".join(f"client {one.client} {one.right / one.tested:.4f}" for one in lowest),
    ]


def _write(path: Path, clients: Sequence[ClientResult]) -> Path:
    """A row a client; the accuracy is empty where it has nothing to be tested on."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["client", "training_samples", "tested", "right", "accuracy"])
    for one in clients:
        writer.writerow([one.client, one.samples, one.tested, one.right, one.right / one.tested if one.tested else ""])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, out.getvalue())
    except OSError as error:
        raise UserError(
            f"the table of clients cannot be written: {error.strerror}", where=str(path), mend="give --out FILE.csv"
        ) from error
    return path
