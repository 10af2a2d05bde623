"""``python -m fedmef_dist.submission slurm``: writes the ready batch scripts into that folder."""

import sys
from pathlib import Path

from fedmef_dist.submission.ready import ready_scripts

if __name__ == "__main__":
    for name, text in ready_scripts().items():
        (Path(sys.argv[1]) / name).write_text(text, encoding="utf-8")
