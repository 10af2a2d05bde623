"""What a step launches on a GPU with the package's own kernels, counted without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import emulated_device
import emulated_run
import pytest

pytest.importorskip("triton", reason="needs triton, which torch's CUDA wheels bring: pip install triton")

# ResNet18, by part of the step. A change may make a number smaller, and then this table; never larger.
LAUNCHES = {
    "fedavg": {"forward": 91, "backward": 73, "optimiser": 1},
    "nsconv": {"forward": 52, "backward": 55, "optimiser": 2},
    "p=0.9 exact": {"forward": 164, "backward": 75, "optimiser": 2},
}


@pytest.mark.skipif(emulated_device.compiler() is None, reason="the emulated device needs a C++ compiler: g++")
@pytest.mark.timeout(900)
def test_a_step_of_resnet18_launches_no_more_than_it_did():
    script = Path(emulated_run.__file__)
    done = subprocess.run([sys.executable, script, "kernels"], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    for case, step in json.loads(done.stdout)["kernels"].items():
        assert isinstance(step, dict), (case, step)  # an error's text
        counted = {part: sum(step[part].values()) for part in LAUNCHES[case]}
        assert sum(counted.values()) == step["launches"]
        assert all(counted[part] <= most for part, most in LAUNCHES[case].items()), (case, step)
