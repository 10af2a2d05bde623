"""``python -m fedmef_dist`` and the console script ``fedmef-dist``."""

from typing import NoReturn

from fedmef_dist.cli import main as command_line
from fedmef_dist.cluster.ending import end_with


def main() -> NoReturn:
    """The command line; the process ends with it."""
    end_with(command_line)


if __name__ == "__main__":
    main()
