"""One line for people, on standard error."""

import sys
from contextlib import suppress

from fedmef_dist.base.text import printable


def tell(text: str) -> None:
    """Show a line at once, with control characters written out.

    Where standard error itself cannot be written or is closed, nothing is left to tell it to.
    """
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{printable(text)}\n")  # one write, or lines of several ranks mix
        sys.stderr.flush()
