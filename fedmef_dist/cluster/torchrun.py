"""torchrun without what buries a rank's own words: ``python -m fedmef_dist.cluster.torchrun``, with torchrun's options.

The ranks say themselves what is wrong, once. torchrun would add some fifty lines: events of its agent, a traceback of
its own and a box. Its exit status would be 1, whatever the ranks' is.
"""

import logging
import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

_SIGNALLED = 128


def main() -> int:
    """Starts the ranks; the exit status is that of the first one that failed, with a signal's number 128 + that."""
    from torch.distributed.run import main as torchrun

    # Otherwise torchrun sets it too, with a block of stars.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        torchrun()
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return status if status > 0 else _SIGNALLED - status
    except SignalException as stopped:
        return _SIGNALLED + stopped.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
