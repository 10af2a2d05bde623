"""Ranks that mpirun starts, for studies and sweeps."""

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from fedmef_dist.base.errors import UserError
from fedmef_dist.cluster.local_ranks import wait_for

# What mpirun dies of in place of handing it on to its ranks, who take all of these for a request to stop.
_HANDED_ON_AS = {signal.SIGUSR2: signal.SIGUSR1, signal.SIGHUP: signal.SIGTERM}


def find_mpirun(where: str) -> tuple[str, ...]:
    """The mpirun to take, and its options: the environment's MPIRUN, else that beside this Python, else the path's.

    The mpich wheel puts its mpirun beside Python; it is the one that mpi4py of the same installation belongs to.
    Raises UserError where there is none; ``where`` says what needs it.
    """
    words = os.environ.get("MPIRUN", "")
    try:
        name, *options = shlex.split(words) or ["mpirun"]
    except ValueError as error:
        raise UserError(f"MPIRUN={words!r} is no command: {error}", where="the environment") from None
    found = shutil.which(str(Path(sys.executable).parent / name)) or shutil.which(name)
    if found is None:
        raise UserError(
            f"{name} is not there, and ranks that talk through MPI or run on named hosts are started by it",
            where=where,
            mend="load your site's MPI module, set MPIRUN to its mpirun, or pip install fedmef_dist[mpich]",
        )
    return found, *options


def run_under(mpirun: Sequence[str], arguments: Sequence[str], ranks: int, output: IO[bytes] | None = None) -> int:
    """Run ``python -m fedmef_dist ARGUMENTS`` on so many ranks; otherwise as :func:`.local_ranks.run_ranks`.

    ``mpirun`` is the command and its options.
    """
    # As launch/mpirun.sh does: ranks share a machine's cores.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    command = [*mpirun, "-n", str(ranks), sys.executable, "-m", "fedmef_dist", *arguments]
    return wait_for([(command, environment)], output, _HANDED_ON_AS)
