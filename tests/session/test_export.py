"""What a run directory names is imported only where the user says so."""

import sys

import pytest
import yaml
from tiny import tiny

from fedmef_dist.base.errors import UserError
from fedmef_dist.config import foreign_names, to_tree
from fedmef_dist.session.saved import config_of

FOREIGN = {
    "method": {"name": "nasty:M"},
    "model": {"name": "nasty:N"},
    "data": {"dataset": "nasty:load"},
    "tracking": {"trackers": [{"name": "nasty:T"}]},
    "callbacks": [{"name": "early_stopping"}, {"name": "nasty:C"}],
}
NAMES = [
    "method.name=nasty:M",
    "model.name=nasty:N",
    "data.dataset=nasty:load",
    "tracking.trackers=nasty:T",
    "callbacks=nasty:C",
]


def test_every_foreign_name_of_a_tree_is_told():
    assert foreign_names(FOREIGN) == NAMES
    assert foreign_names(to_tree(tiny())) == []


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"method": None, "model": 3, "data": [], "tracking": {"trackers": 3}, "callbacks": {}},
        {"method": {"name": 3}, "model": {}, "data": {"dataset": None}, "tracking": {}, "callbacks": None},
    ],
)
def test_a_tree_that_is_no_configuration_names_nothing(tree):
    assert foreign_names(tree) == []


@pytest.mark.parametrize("section", FOREIGN)
def test_foreign_code_is_refused_and_not_imported(outside, section):
    (outside / "nasty.py").write_text("raise SystemExit('imported')\n")
    (outside / "config.yaml").write_text(yaml.safe_dump(to_tree(tiny()) | {section: FOREIGN[section]}))
    with pytest.raises(UserError, match=r"the run names code from outside of the package: .*nasty:") as caught:
        config_of(outside, allow_plugins=False)
    assert caught.value.where == str(outside / "config.yaml")
    assert caught.value.mend.startswith("add --allow-plugins if you trust it")
    assert "nasty" not in sys.modules


def test_with_leave_it_is_imported(outside):
    (outside / "fine.py").write_text("from fedmef_dist.api import FedMef\nclass M(FedMef):\n    '''Own.'''\n")
    (outside / "config.yaml").write_text(yaml.safe_dump({"method": {"name": "fine:M", "density": 0.25}}))
    assert config_of(outside, allow_plugins=True).method.density == 0.25


def test_a_run_of_the_packages_own_needs_no_leave(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_tree(tiny())))
    assert config_of(tmp_path, allow_plugins=False) == tiny()
    with pytest.raises(UserError, match="not a run directory"):
        config_of(tmp_path / "none", allow_plugins=False)
