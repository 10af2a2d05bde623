"""What a built wheel has in it, and that a folder to start from comes out of it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.build import build_sdist, build_wheel

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, and the folder that it lies in."""
    folder = tmp_path_factory.mktemp("wheel")
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        return zipfile.ZipFile(folder / build_wheel(str(folder)))
    finally:
        os.chdir(before)


def test_the_wheel_has_every_file_of_the_package_and_of_a_folder_to_start_from(wheel):
    built = {name for name in wheel.namelist() if not name.startswith("fedmef_dist-")}
    files = [path for path in (ROOT / "fedmef_dist").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    starter = [
        *(ROOT / "configs").rglob("*.yaml"),
        *(path for path in (ROOT / "examples").glob("*.*") if path.is_file()),
    ]
    expected = {str(path.relative_to(ROOT)) for path in files}
    expected |= {f"fedmef_dist/starter/{path.relative_to(ROOT)}" for path in starter}
    assert expected <= built
    assert {name for name in built if "/starter/" not in name} <= expected
    assert {"fedmef_dist/py.typed", "fedmef_dist/submission/common.sh", "fedmef_dist/data/digits.csv.gz"} <= built


def test_a_folder_to_start_from_comes_out_of_the_wheel(wheel, tmp_path):
    wheel.extractall(tmp_path / "installed")
    command = [sys.executable, "-m", "fedmef_dist", "init", "here"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    for name in ("configs/quickstart.yaml", "configs/sweeps/fashion_mnist_methods.yaml", "examples/own_method.py"):
        assert (tmp_path / "here" / name).read_bytes() == (ROOT / name).read_bytes()


def test_the_source_distribution_has_what_builds_and_tests_it(tmp_path, monkeypatch):
    import tarfile

    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / build_sdist(str(tmp_path))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {"pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "README.md", ".ci/run", "CITATION.cff"}
    expected |= {"configs/quickstart.yaml", "slurm/common.sh", "launch/torchrun.sh", "docs/methods.md"}
    assert expected | {"tests/test_wheel.py", "benchmarks/round.py"} <= names
