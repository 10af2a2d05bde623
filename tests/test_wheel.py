"""What a built wheel has in it."""

from pathlib import Path

from setuptools import Distribution
from setuptools.config.pyprojecttoml import apply_configuration

ROOT = Path(__file__).parent.parent


def test_the_wheel_has_every_file_of_the_package(monkeypatch):
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py"})
    apply_configuration(distribution, "pyproject.toml")
    # With it, setuptools would write a list of files into the source tree.
    distribution.include_package_data = False
    build = distribution.get_command_obj("build_py")
    build.build_lib = "lib"
    build.ensure_finalized()
    built = {str(Path(path).relative_to("lib")) for path in build.get_outputs(include_bytecode=False)}
    files = [path for path in (ROOT / "fedmef_dist").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert built == {str(path.relative_to(ROOT)) for path in files}
    assert {"fedmef_dist/api.py", "fedmef_dist/py.typed", "fedmef_dist/submission/common.sh"} <= built
