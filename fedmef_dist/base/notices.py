"""One line for people, on standard error."""

import sys
from contextlib import suppress


def tell(text: str) -> None:
    """Show a line at once. Where standard error itself cannot be written, nothing is left to tell it to."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)
