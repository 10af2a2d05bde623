"""``python -m fedmef_dist`` and the console script ``fedmef-dist``."""

from fedmef_dist.cli import main

if __name__ == "__main__":
    main()
