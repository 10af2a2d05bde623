import os

import pytest

from slurm import DaemonDiedError, SlurmCluster, missing_programs


def pytest_collection_modifyitems(items):
    """What was tried with a Slurm whose daemon crashed meanwhile (22.05's slurmd can) is tried with a new one, once."""
    for item in items:
        if "slurm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=[DaemonDiedError.__name__]))


@pytest.fixture(scope="session")
def _clusters():
    clusters = []
    yield clusters
    for cluster in clusters:
        cluster.close()


@pytest.fixture
def slurm(_clusters):
    """A two-node Slurm. Skips where Slurm is not installed, except under CI=true, where that is a failure."""
    missing = missing_programs()
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{', '.join(missing)} not found: apt install slurm-wlm munge")
    if missing:
        pytest.skip(f"{', '.join(missing)} not found: apt install slurm-wlm munge")
    if _clusters and _clusters[0].dead():
        _clusters.pop().close()
    if not _clusters:
        _clusters.append(SlurmCluster())
    return _clusters[0]
