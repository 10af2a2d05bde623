"""Methods by name: the package's own and guests."""

import pytest
from pydantic import Field

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.guests import Kind, lent
from fedmef_dist.base.settings import Settings
from fedmef_dist.config import Config, load_config, parse_config, schema, to_tree
from fedmef_dist.methods.base import Method, MethodContext, Preferences
from fedmef_dist.methods.fedavg import FedAvg
from fedmef_dist.methods.fedmef import FedMef, FedMefSettings
from fedmef_dist.methods.registry import METHODS, create_method, method_of, name_of, settings_of

NAME = "mine:Own"


class OwnSettings(FedMefSettings):
    boost: float = Field(0.5, ge=0, le=1, description="share of something")


class Own(FedMef):
    """Grows otherwise.

    And more about it.
    """

    Settings = OwnSettings


class Dense(FedAvg):
    """Dense as ever."""

    preferences = Preferences(norm="group")


@pytest.fixture(autouse=True)
def at_hand():
    with lent({(Kind.METHOD, NAME): Own, (Kind.METHOD, "mine:Dense"): Dense}):
        yield


@pytest.fixture
def load(tmp_path):
    def write_and_load(text, *overrides):
        (tmp_path / "config.yaml").write_text(text)
        return load_config(tmp_path / "config.yaml", overrides)

    return write_and_load


def test_every_method_has_its_settings_and_its_name():
    for name, method in METHODS.items():
        assert method.Settings.model_fields["name"].default == name
        assert method_of(settings_of(name)()) is method
        assert name_of(method) == name
    assert name_of(Own) == f"{__name__}:Own"


def test_a_guests_own_keys_are_validated_and_its_name_is_kept_as_written(load):
    config = load(f"method: {{name: '{NAME}', density: 0.25}}", "method.boost=0.75")
    method = config.method
    assert (method.name, method.density, method.boost, method.adjust_every) == (NAME, 0.25, 0.75, 10)
    assert method_of(method) is Own
    assert to_tree(config)["method"]["boost"] == 0.75
    assert parse_config(to_tree(config), "here") == config
    with pytest.raises(UserError, match=r"method\.boost: must be 1 or less, got 2"):
        load(f"method: {{name: '{NAME}', boost: 2}}")
    with pytest.raises(UserError, match="extrusion_lambda is given although extrusion is off"):
        load(f"method: {{name: '{NAME}', extrusion: false, extrusion_lambda: 2.0}}")


def test_an_unknown_key_of_a_guest_gets_the_nearest_of_its_own(load):
    with pytest.raises(UserError, match=r"unknown key method\.bosst") as caught:
        load(f"method: {{name: '{NAME}', bosst: 2}}")
    assert caught.value.mend == "did you mean method.boost?"
    with pytest.raises(UserError, match=r"unknown key method\.candidates") as caught:
        load(f"method: {{name: '{NAME}', candidates: 2}}")
    assert caught.value.mend == f"leave it out; method {NAME} does not have it"


def test_a_switch_to_and_from_a_guest_drops_what_the_other_has_not(load, capsys):
    assert load("method: {density: 0.3}", "method.name=mine:Dense").method.model_dump() == {"name": "mine:Dense"}
    assert capsys.readouterr().err == "note: method mine:Dense has no density; left out\n"
    kept = load("method: {name: fedmef, density: 0.3}", f"method.name={NAME}", "method.boost=0.25").method
    assert (kept.density, kept.boost) == (0.3, 0.25)
    assert capsys.readouterr().err == ""
    assert load(f"method: {{name: '{NAME}', density: 0.3, boost: 1.0}}", "method.name=fedmef").method.density == 0.3
    assert capsys.readouterr().err == "note: method fedmef has no boost; left out\n"


def test_the_file_of_a_guest_that_is_switched_away_is_not_imported(load):
    assert load("method: {name: 'nowhere:Gone', x: 1}", "method.name=fedavg").method.name == "fedavg"


def test_a_subclass_under_another_name_has_the_preferences_of_its_class(load):
    own, dense = load(f"method: {{name: '{NAME}'}}"), load("method: {name: 'mine:Dense'}")
    assert (own.norm, own.resolved_sap.enabled) == ("nsconv", True)
    assert (dense.norm, dense.resolved_sap.enabled) == ("group", False)
    assert load(f"method: {{name: '{NAME}'}}", "model.norm=batch", "sap.enabled=false").norm == "batch"
    preferring = [name for name, method in METHODS.items() if method.preferences != Preferences()]
    assert preferring == ["fedmef", "sparsyfed"]


def test_create_method_makes_the_guest():
    class Recorded(Method[Settings]):
        """Keeps what it gets."""

        def initial_mask(self, preparation):
            raise NotImplementedError

    with lent({(Kind.METHOD, "mine:Recorded"): Recorded}):
        settings = settings_of("mine:Recorded")()
        method = create_method(settings, None, MethodContext(seed=3))
    assert type(method) is Recorded
    assert (method.settings, method.context.seed) == (settings, 3)


def test_what_is_no_method_is_refused():
    class Abstract(Method[Settings]):
        """Decides nothing."""

    class Wild(FedAvg):
        """Has keys of another kind."""

        Settings = dict

    cases = {
        Abstract: "lacks initial_mask",
        Wild: "Settings are no settings",
        dict: "is no method",
        len: "is no method",
    }
    for guest, reason in cases.items():
        with lent({(Kind.METHOD, "mine:Wrong"): guest}), pytest.raises(UserError, match=reason) as caught:
            settings_of("mine:Wrong")
        assert caught.value.where == "method.name=mine:Wrong"


def test_the_schema_of_a_method_has_its_keys_alone():
    section = schema(NAME)["properties"]["method"]
    keys = schema(NAME)["$defs"][section["$ref"].rpartition("/")[2]]
    assert keys["properties"]["boost"]["maximum"] == 1
    assert keys["properties"]["name"] == {
        "const": NAME,
        "default": NAME,
        "description": "Grows otherwise.",
        "title": "Name",
        "type": "string",
    }
    assert "candidates" not in str(schema("fedmef"))
    with pytest.raises(UserError, match="unknown method 'fedtyny'") as caught:
        schema("fedtyny")
    assert caught.value.where == "method.name"


def test_the_schema_of_all_methods_allows_what_it_cannot_know():
    own, guest = schema()["properties"]["method"]["anyOf"]
    assert len(own["oneOf"]) == len(METHODS)
    assert guest["properties"]["name"]["pattern"] == ":"
    assert schema() == Config.model_json_schema()
