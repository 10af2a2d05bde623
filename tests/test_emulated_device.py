"""A GPU path without a GPU: the CPU's digest with every method, NCCL's rules, and what a step and a round wait for."""

import json
import subprocess
import sys
from pathlib import Path

import emulated_device
import emulated_run
import pytest

pytestmark = [
    pytest.mark.skipif(emulated_device.compiler() is None, reason="the emulated device needs a C++ compiler: g++"),
    pytest.mark.timeout(900),  # compiling against torch's headers takes half a minute on an idle machine
]

# What one step may wait for, copy and launch on a device without the package's own kernels, each of which stands for
# about ten of torch's, and a round for each of its three clients and beside them. A change may make a number smaller,
# and then this table; never larger.
STEPS = {
    "fedavg": (0, 0, 76),
    "nsconv": (0, 0, 572),
    "p=0.5 exact": (0, 0, 930),
    "p=0.5 by sample": (0, 0, 930),
    "without loss": (0, 0, 900),
    "p=0.5 recomputed": (0, 0, 1202),
}
CLIENTS = {
    "fedavg": (0, 9),
    "fedmef": (0, 9),
    "fedmef, new mask": (9, 18),
    "balanced": (0, 9),
    "balanced, new mask": (7, 24),
}
BESIDE = {"fedavg": 3, "fedmef": 3, "fedmef, new mask": 5, "balanced": 4, "balanced, new mask": 5}


@pytest.fixture(scope="module")
def found():
    script = Path(emulated_run.__file__)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", emulated_run.CASES)
def test_a_run_on_the_device_has_the_cpus_digest(found, case):
    here, there = found["digests"][case]
    assert len(here) == 64, here
    assert there == here


@pytest.mark.parametrize("method", emulated_run.ON_TWO_RANKS)
def test_two_ranks_have_one_digest_and_ask_nothing_that_nccl_has_not(found, method):
    assert found["ranks"][method] == 2 * [found["digests"][method][0]]


@pytest.mark.parametrize("method", emulated_run.IN_SLOTS)
def test_clients_beside_each_other_have_one_digest(found, method):
    assert found["slots"][method] == 4 * [found["digests"][method][0]]


@pytest.mark.parametrize("case", emulated_run.STEPS)
def test_a_step_waits_copies_and_launches_no_more_than_it_did(found, case):
    step = found["steps"][case]
    counted = step["waits"], step["copies"], step["launches"]
    assert all(now <= then for now, then in zip(counted, STEPS[case], strict=True)), step


@pytest.mark.parametrize("case", CLIENTS)
def test_a_round_waits_and_copies_no_more_than_it_did(found, case):
    waits, copies = CLIENTS[case]
    clients = found["rounds"][case]["clients"]
    assert clients["waits"] <= waits, found["rounds"][case]["where"]
    assert clients["copies"] <= copies, found["rounds"][case]["copies"]
    assert found["rounds"][case]["beside"] <= BESIDE[case], found["rounds"][case]["where beside"]
