import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.trees import differing_keys
from fedmef_dist.cli import main
from fedmef_dist.config import Config, load_config, parse_config, to_tree
from fedmef_dist.methods.fedavg import FedAvgSettings
from fedmef_dist.methods.fedmef import FedMefSettings


@pytest.fixture
def load(tmp_path):
    """`load("YAML text", "a.b=override", ...)` gives the configuration."""

    def write_and_load(text, *overrides):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return load_config(path, overrides)

    return write_and_load


@pytest.fixture
def refusal(load):
    """`refusal("YAML text", "a.b=override", ...)` gives the message's lines."""

    def load_and_fail(text, *overrides):
        with pytest.raises(UserError) as caught:
            load(text, *overrides)
        lines = str(caught.value).split("\n")
        assert 1 <= len(lines) <= 3
        return lines

    return load_and_fail


def test_an_empty_file_gives_the_defaults(load):
    assert load("") == load("# nothing\n") == load("{}") == Config()
    assert Config().method == FedMefSettings()


def test_sections_reach_their_settings(load):
    config = load(
        "name: x\nseed: 3\ndata: {dataset: synthetic, partition: {scheme: iid}}\noptimizer: {lr: 1e-3, momentum: 0}"
    )
    assert (config.name, config.seed) == ("x", 3)
    assert config.data.partition.scheme == "iid"
    assert config.optimizer.lr == 0.001
    assert config.optimizer.momentum == 0.0


def test_overrides_change_the_file_and_the_last_one_wins(load):
    config = load("federation: {rounds: 5, clients: 12}", "federation.rounds=6", "federation.rounds=8", "seed=1")
    assert (config.federation.rounds, config.federation.clients, config.seed) == (8, 12, 1)


def test_override_makes_a_section_that_the_file_has_not_and_takes_any_yaml(load):
    config = load("", "tracking.wandb.tags=[a, b]", "data.partition={scheme: iid}", "optimizer.lr=5e-2")
    assert config.tracking.wandb.tags == ["a", "b"]
    assert config.data.partition.scheme == "iid"
    assert config.optimizer.lr == 0.05


def test_value_of_an_override_may_hold_an_equals_sign(load):
    assert load("", "tracking.wandb.project=a=b").tracking.wandb.project == "a=b"


# --- unknown keys


@pytest.mark.parametrize(
    ("text", "unknown", "meant"),
    [
        ("optimzer: {lr: 1.0}", "optimzer", "optimizer"),
        ("federation: {client_per_round: 3}", "federation.client_per_round", "federation.clients_per_round"),
        ("data: {partition: {alfa: 0.3}}", "data.partition.alfa", "data.partition.alpha"),
        ("method: {densty: 0.3}", "method.densty", "method.density"),
        ("rounds: 3", "rounds", "federation.rounds"),
        ("optimizer: {density: 0.3}", "optimizer.density", "method.density"),
    ],
)
def test_unknown_key_names_the_one_that_was_meant(refusal, text, unknown, meant):
    what, where, mend = refusal(text)
    assert what == f"unknown key {unknown}"
    assert where.startswith("where: ")
    assert where.endswith("config.yaml")
    assert mend == f"mend: did you mean {meant}?"


def test_unknown_key_that_resembles_nothing_points_to_the_schema(refusal):
    assert refusal("qqqqqqqq: 1")[2] == "mend: `fedmef-dist schema` lists all keys"


def test_unknown_key_of_an_override_shows_the_override(refusal):
    what, where, _ = refusal("seed: 1", "optimizer.rate=3")
    assert what == "unknown key optimizer.rate"
    assert where.endswith("config.yaml with optimizer.rate=3")


def test_key_of_another_method_says_so(refusal):
    what, _, mend = refusal("method: {name: fedavg, density: 0.3}")
    assert what == "unknown key method.density"
    assert mend == "mend: leave it out; method fedavg does not have it"


def test_several_problems_are_counted(refusal):
    assert refusal("seed: -1\nname: 3\nfederation: {rounds: 0}")[0].endswith(" (and 2 more keys)")


# --- numbers beyond reason


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("runtime.threads", 100_000),
        ("runtime.timeout", 1e300),
        ("federation.clients_per_round", 10**19),
        ("federation.rounds", 10**19),
        ("federation.local_epochs", 10**9),
        ("federation.batch_size", 10**19),
        ("federation.day_rounds", 10**19),
        ("federation.oversample", 1e300),
        ("federation.deadline", 1e300),
        ("optimizer.lr", 1e300),
        ("optimizer.weight_decay", 1e300),
        ("optimizer.prox_mu", 1e300),
        ("model.width", 1e9),
        ("model.hidden", 10**9),
        ("model.gpt.depth", 10**9),
        ("model.gpt.width", 10**9),
        ("model.gpt.heads", 10**9),
        ("evaluation.every", 10**19),
        ("evaluation.batch_size", 10**19),
        ("evaluation.per_client", 10**19),
    ],
)
def test_numbers_beyond_reason_are_refused_by_their_range(refusal, key, value):
    what, _, mend = refusal("", f"{key}={value}")
    assert re.match(rf"{key}: must be [0-9.]+ or (less|more), got ", what)
    assert mend == f"mend: correct {key}"


@pytest.mark.parametrize("value", ["010", "[010]", "-007"])
def test_a_number_with_a_leading_zero_is_refused_in_an_override_too(refusal, value):
    assert "begins with a zero, which some take for octal" in refusal("", f"seed={value}")[0]
    assert "begins with a zero" in refusal(f"seed: {value}")[0]


def test_minutes_and_seconds_are_no_number(refusal):
    assert refusal("", "federation.rounds=1:30")[0] == ("federation.rounds: must be a whole number, got '1:30'")


# --- values


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: '3'", "seed: must be a whole number, got '3'"),
        ("seed: true", "seed: must be a whole number, got True"),
        ("seed: 1.0", "seed: must be a whole number, got 1.0"),
        ("seed: -1", "seed: must be 0 or more, got -1"),
        ("name: 7", "name: must be text, got 7"),
        ("name: no", "name: must be text, got False"),
        ("name: 2020-01-01", "name: must be text, got datetime.date(2020, 1, 1)"),
        ("name: ../x", "name: must be text that matches "),
        ("name: ''", "name: must be text that matches "),
        ("federation: {rounds: 1e2}", "federation.rounds: must be a whole number, got 100.0"),
        ("optimizer: {lr: 0}", "optimizer.lr: must be above 0, got 0"),
        ("optimizer: {lr: .nan}", "optimizer.lr: must be a finite number, got nan"),
        ("optimizer: {lr: .inf}", "optimizer.lr: must be a finite number, got inf"),
        ("optimizer: {momentum: 1}", "optimizer.momentum: must be below 1, got 1"),
        ("method: {density: 1.5}", "method.density: must be 1 or less, got 1.5"),
        ("method: {density: low}", "method.density: must be a number, got 'low'"),
        ("method: [1]", "method: must be a section such as {key: value}, got [1]"),
        ("federation: 3", "federation: "),
        ("federation:", "federation: "),
        ("data: {dataset: 3}", "data.dataset: must be one of digits, "),
        (
            "sap: {enabled: maybe}",
            "sap.enabled: must be true or false or auto, got 'maybe'",
        ),
        ("tracking: {wandb: {tags: [a, 2]}}", "tracking.wandb.tags.1: must be text, got 2"),
        ("runtime: {threads: 0}", "runtime.threads: must be 1 or more, got 0"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(refusal, text, problem):
    what, where, mend = refusal(text)
    assert what.startswith(problem)
    assert where.endswith("config.yaml")
    assert mend == f"mend: correct {problem.partition(':')[0]}"


@pytest.mark.parametrize(
    ("text", "problem", "advice"),
    [
        ("method: {name: fedtyny}", "method.name: unknown method 'fedtyny'", "did you mean fedtiny? "),
        ("method: {name: 3}", "method.name: unknown method '3'", "choose one of ditto, fedavg, "),
        (
            "method: {name: fedprox}",
            "method.name: unknown method 'fedprox'",
            "did you mean method.name=fedavg optimizer.prox_mu=0.01? any method takes prox_mu",
        ),
        (
            "method: {name: fedadam}",
            "method.name: unknown method 'fedadam'",
            "did you mean method.name=fedavg server_optimizer.name=adam? ",
        ),
        ("data: {dataset: mnist}", "data.dataset: unknown data set 'mnist'", "did you mean fashion_mnist? "),
        ("callbacks: [early_stoping]", "callbacks: unknown callback 'early_stoping'", "did you mean early_stopping? "),
        ("tracking: {trackers: [x]}", "tracking.trackers: unknown tracker 'x'", "write package.module:Name for your "),
    ],
)
def test_a_name_that_is_not_known_gets_the_nearest_one(refusal, text, problem, advice):
    what, where, mend = refusal(text)
    assert what == problem
    assert where.endswith("config.yaml")
    assert mend.startswith(f"mend: {advice}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "federation: {clients: 5, clients_per_round: 6}",
            "federation: clients_per_round is 6 but there are only 5 clients; lower clients_per_round or raise clients",
        ),
        (
            "method: {extrusion: false, extrusion_lambda: 2.0}",
            "method: extrusion_lambda is given although extrusion is off; leave out one of the two",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(refusal, text, problem):
    assert refusal(text)[0] == problem


def test_a_huge_value_is_not_shown_in_full(refusal):
    assert len(refusal(f"seed: [{', '.join(['[' * 40 + ']' * 40] * 3)}]")[0]) < 200
    assert len(refusal(f"seed: {'x' * 10_000}")[0]) < 200


# --- the command line's part


@pytest.mark.parametrize("text", ["seed", "=3", ".seed=3", "data..root=x", "seed.=3"])
def test_what_is_no_override_is_refused(refusal, text):
    assert refusal("", text) == [
        f"{text!r} is not an override",
        "where: command line",
        "mend: write section.key=value",
    ]


def test_override_with_wrong_yaml_is_refused(refusal):
    what, where, _ = refusal("", "tracking.wandb.tags=[a")
    assert what.startswith("not valid YAML")
    assert "unicode string" not in what
    assert "in line 1, column 3" in what
    assert where == "where: 'tracking.wandb.tags=[a' on the command line"


def test_override_below_a_value_is_refused(refusal):
    assert refusal("data: {root: x}", "data.root.deeper=3")[:2] == [
        "data.root is a value, not a section",
        "where: data.root.deeper on the command line",
    ]


# --- the method and its switch


def test_method_without_a_name_is_fedmef(load):
    assert load("method: {density: 0.3}").method == FedMefSettings(density=0.3)
    assert load("", "method.density=0.3").method == FedMefSettings(density=0.3)


def test_switch_of_method_drops_the_keys_that_it_has_not_with_a_notice(load, capsys):
    text = "method: {name: fedmef, density: 0.3, adjust_every: 4}"
    assert load(text, "method.name=fedavg").method == FedAvgSettings()
    captured = capsys.readouterr()
    assert captured.err == "note: method fedavg has no density, adjust_every; left out\n"
    assert captured.out == ""


def test_switch_from_the_unnamed_default_method_works_too(load, capsys):
    assert load("method: {density: 0.3}", "method.name=fedavg").method == FedAvgSettings()
    assert capsys.readouterr().err == "note: method fedavg has no density; left out\n"


def test_notice_of_a_switch_is_shown_by_rank_0_only(load, capsys, monkeypatch):
    ranks = {"OMPI_COMM_WORLD_SIZE": 2, "OMPI_COMM_WORLD_LOCAL_SIZE": 2}
    for name, value in {**ranks, "OMPI_COMM_WORLD_RANK": 1, "OMPI_COMM_WORLD_LOCAL_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert load("method: {density: 0.3}", "method.name=fedavg").method == FedAvgSettings()
    assert capsys.readouterr().err == ""


def test_no_notice_where_nothing_is_dropped(load, capsys):
    assert load("method: {density: 0.3}", "method.name=fedmef").method.density == 0.3
    assert load("method: {name: fedavg}", "method.name=fedmef", "method.density=0.2").method.density == 0.2
    assert capsys.readouterr().err == ""


def test_keys_on_the_command_line_must_fit_the_new_method(refusal, capsys):
    what, where, mend = refusal("method: {name: fedmef}", "method.name=fedavg", "method.density=0.3")
    assert what == "unknown key method.density"
    assert where.endswith("config.yaml with method.name=fedavg method.density=0.3")
    assert mend == "mend: leave it out; method fedavg does not have it"


@pytest.mark.parametrize("value", ["fedsgd", "[fedavg]", "{a: b}", "", "3"])
def test_switch_to_what_is_no_method_is_refused(refusal, value):
    assert refusal("method: {density: 0.3}", f"method.name={value}")[0].startswith("method")


# --- what `auto` stands for


@pytest.mark.parametrize(("method", "norm", "pruned"), [("fedmef", "nsconv", True), ("fedavg", "batch", False)])
def test_auto_follows_the_method(load, method, norm, pruned):
    config = load(f"method: {{name: {method}}}\nsap: {{prune_ratio: 0.25}}")
    assert config.norm == norm
    assert config.resolved_sap.enabled is pruned
    assert config.resolved_sap.prune_ratio == 0.25
    chosen = load(f"method: {{name: {method}}}\nsap: {{enabled: {not pruned}}}\nmodel: {{norm: group}}")
    assert chosen.norm == "group"
    assert chosen.resolved_sap.enabled is not pruned


# --- files


def test_a_file_that_is_not_there_or_cannot_be_text_is_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    reasons = {"none.yaml": "No such file or directory", ".": "not a regular file", "binary.yaml": "not UTF-8 text"}
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=reason) as caught:
            load_config(tmp_path / name)
        assert f"where: {tmp_path / name}\n" in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b", "word", "3", "[]"])
def test_what_is_no_mapping_is_refused(refusal, text):
    assert refusal(text)[0].startswith("a configuration is a mapping of keys, and this is a ")


@pytest.mark.parametrize("text", ["1: 2", "null: 3", "2020-01-01: 4", "optimizer: {1: 2}"])
def test_keys_that_are_no_words_are_refused(refusal, text):
    assert len(refusal(text)) == 3


# --- trees


def test_a_resolved_configuration_reads_back_as_itself(load):
    config = load("method: {name: fedmef, extrusion_target: mean}\noptimizer: {lr: 1e-3}", "data.dataset=synthetic")
    tree = to_tree(config)
    assert parse_config(yaml.safe_load(yaml.safe_dump(tree)), "here") == config
    assert parse_config(json.loads(json.dumps(tree)), "here") == config


def test_differing_keys_are_dotted_and_sorted():
    one = {"a": 1, "b": {"c": 2, "d": [1]}, "e": {"f": 0}, "same": {"x": 1}, 3: 0}
    other = {"a": 1, "b": {"c": 3, "d": [2]}, "e": 5, "same": {"x": 1}, "new": 0}
    assert differing_keys(one, other) == ["3", "b.c", "b.d", "e", "new"]


trees = st.recursive(
    st.integers(0, 2), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


@given(trees, trees)
def test_differing_keys_are_none_exactly_for_equal_trees_and_the_same_from_either_side(one, other):
    assert differing_keys(one, one) == []
    assert differing_keys(one, other) == differing_keys(other, one)
    assert bool(differing_keys(one, other)) == (one != other)


# --- the schema


def test_schema_command_prints_every_key_with_a_description(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fedmef-dist", "schema"])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    schema = json.loads(capsys.readouterr().out)
    definitions = schema["$defs"]
    for name, definition in definitions.items():
        if name in ("GuestSettings", "JsonValue"):  # a tracker or a callback has whatever options its class takes
            continue
        assert definition["additionalProperties"] is False
        for key, entry in definition["properties"].items():
            assert entry.get("description"), f"{name}.{key}"
    assert set(schema["properties"]) == set(Config.model_fields)
    assert definitions["OptimizerSettings"]["properties"]["lr"]["exclusiveMinimum"] == 0


# Users' files rely on these names; values are not the defaults.
EVERY_STABLE_KEY = """
name: x
seed: 1
data:
  dataset: synthetic
  root: elsewhere
  download: true
  augment: false
  partition: {scheme: iid, alpha: 0.25, min_samples: 5}
model: {name: cnn, stem: imagenet, width: 0.5, norm: group}
federation: {clients: 50, clients_per_round: 5, rounds: 50, local_epochs: 1, batch_size: 16}
optimizer: {name: sgd, lr: 0.5, momentum: 0.5, weight_decay: 0.5, schedule: cosine, decay: 0.5}
method: {name: fedmef, density: 0.5, allocation: uniform, adjust_every: 5, adjust_until: 50, adjust_rate: 0.5,
         extrusion_lambda: 0.5, extrusion_target: mean, marking: aggregate}
sap: {enabled: false, prune_ratio: 0.25}
runtime: {device: cpu, backend: gloo, threads: 2, precision: bf16}
evaluation: {every: 5, batch_size: 16, around_adjustment: true}
checkpoint: {every: 5, keep: 5}
tracking: {console: false, wandb: {mode: disabled, project: p, entity: e, group: g, tags: [t]}}
"""


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_every_stable_key_is_understood(load):
    understood = dict(leaves(to_tree(load(EVERY_STABLE_KEY))))
    for key, value in leaves(yaml.safe_load(EVERY_STABLE_KEY)):
        assert understood[key] == value, key


def test_defaults_are_those_of_the_paper():
    config = Config()
    assert (config.federation.clients, config.federation.clients_per_round, config.federation.rounds) == (100, 10, 500)
    assert (config.federation.local_epochs, config.federation.batch_size) == (5, 64)
    assert (config.optimizer.lr, config.optimizer.momentum, config.optimizer.weight_decay) == (0.01, 0.0, 0.0)
    method = config.method
    assert (method.adjust_every, method.adjust_until, method.adjust_rate, method.allocation) == (10, 300, 0.4, "erk")
    assert (method.extrusion_target, method.marking) == ("zero", "broadcast")
