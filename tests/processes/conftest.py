import os

import pytest

from slurm import SlurmCluster, missing_programs


@pytest.fixture(scope="session")
def slurm():
    """A two-node Slurm. Skips where Slurm is not installed, except under CI=true, where that is a failure."""
    missing = missing_programs()
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{', '.join(missing)} not found: apt install slurm-wlm munge")
    if missing:
        pytest.skip(f"{', '.join(missing)} not found: apt install slurm-wlm munge")
    cluster = SlurmCluster()
    yield cluster
    cluster.close()
