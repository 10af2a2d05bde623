import shutil
import sys

import pytest
import yaml
from run_dirs import checkpoint_files, configured

from fedmef_dist.base.errors import UserError
from fedmef_dist.config import Config, parse_config, to_tree
from fedmef_dist.runs import directory as run_directory


def round_to_resume(run_dir, config, resume):
    return run_directory.round_to_resume(run_dir, to_tree(config), resume, config.begins_as)


def configuration(**sections):
    return parse_config({"name": "x", **sections}, "here")


def save_rounds(run_dir, *rounds):
    for number in rounds:
        checkpoint_files(run_dir, number, {})


@pytest.fixture
def run_dir(tmp_path):
    """A directory that holds the default configuration's run with checkpoints of rounds 10 and 20."""
    path = tmp_path / "run"
    configured(path, to_tree(Config()))
    save_rounds(path, 10, 20)
    return path


def refusal(run_dir, config=None, resume="auto"):
    with pytest.raises(UserError) as caught:
        round_to_resume(run_dir, config or Config(), resume)
    lines = str(caught.value).split("\n")
    assert len(lines) == 3
    assert lines[1].startswith(f"where: {run_dir}")
    return lines[0]


def content(path):
    return {entry: entry.read_bytes() if entry.is_file() else None for entry in path.rglob("*")}


# --- which round a run resumes from


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_missing_and_empty_directories_start_a_run_and_stay_as_they_are(tmp_path, resume):
    assert round_to_resume(tmp_path / "missing" / "deeper", Config(), resume) is None
    (tmp_path / "empty").mkdir()
    assert round_to_resume(tmp_path / "empty", Config(), resume) is None
    assert content(tmp_path) == {tmp_path / "empty": None}


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_a_run_goes_on_from_its_newest_checkpoint(run_dir, resume):
    before = content(run_dir)
    assert round_to_resume(run_dir, Config(), resume) == 20
    assert content(run_dir) == before


def test_a_finished_run_resumes_from_its_last_round(run_dir):
    assert round_to_resume(run_dir, configuration(federation={"rounds": 20}), "auto") == 20


def test_a_finished_run_without_checkpoints_is_not_done_again_over_its_results(run_dir):
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="is finished and has no checkpoints") as caught:
        round_to_resume(run_dir, Config(), "auto")
    assert "delete summary.json" in caught.value.mend
    (run_dir / "summary.json").unlink()
    assert round_to_resume(run_dir, Config(), "auto") is None


def test_a_run_that_stopped_before_its_first_checkpoint_starts_again(tmp_path):
    configured(tmp_path / "run", to_tree(Config()))
    assert round_to_resume(tmp_path / "run", Config(), "auto") is None


def test_what_was_not_saved_to_its_end_does_not_count(run_dir):
    (run_dir / "checkpoints" / ".round-000030.partial").mkdir()
    assert round_to_resume(run_dir, Config(), "auto") == 20


def test_never_refuses_a_directory_with_a_run(run_dir):
    assert refusal(run_dir, resume="never") == "the directory holds a run already"


def test_must_refuses_where_there_is_no_checkpoint(tmp_path):
    assert refusal(tmp_path / "missing", resume="must") == "there is no checkpoint to resume from"
    configured(tmp_path / "run", to_tree(Config()))
    assert refusal(tmp_path / "run", resume="must") == "there is no checkpoint to resume from"


def test_fewer_rounds_than_done_are_refused(run_dir):
    what = refusal(run_dir, configuration(federation={"rounds": 19}))
    assert what == "the run has done 20 rounds already, more than federation.rounds=19"


# --- whose directory it is


def test_a_start_that_was_killed_while_it_wrote_its_configuration_starts_again(tmp_path):
    for name in ("owner.json", "owner.lock", ".owner.json.0123456789ab.tmp", ".config.yaml.0123456789ab.tmp"):
        (tmp_path / name).write_text("half")
    assert round_to_resume(tmp_path, Config(), "auto") is None


@pytest.mark.parametrize("name", ["notes.txt", "owner.json.bak", ".notes.tmp", "checkpoints/round-000010/state.json"])
def test_a_directory_of_something_else_is_refused_and_not_touched(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = content(tmp_path)
    assert refusal(tmp_path) == "the directory holds something that is not a run"
    assert content(tmp_path) == before


def test_another_configurations_run_is_refused_with_the_keys(run_dir):
    other = configuration(seed=1, method={"name": "fedmef", "density": 0.3}, data={"partition": {"alpha": 1.0}})
    assert refusal(run_dir, other) == (
        "the directory holds another configuration's run; different: data.partition.alpha, method.density, seed"
    )


def test_a_configuration_of_something_else_is_refused_with_the_keys(tmp_path):
    (tmp_path / "config.yaml").write_text("1: x\na: b\n")
    assert refusal(tmp_path) == (
        "the directory holds another configuration's run; different: 1, a, callbacks, data, device, federation, "
        "method, model and 6 more"
    )


@pytest.mark.parametrize(
    "sections",
    [
        {"name": "y"},
        {"evaluation": {"every": 3}},
        {"checkpoint": {"every": 3, "keep": 1}},
        {"tracking": {"console": False, "wandb": {"tags": ["a"]}}},
        {"wire": {"stateful_clients": False}},
        {"data": {"root": "elsewhere", "download": True}},
        {"federation": {"rounds": 30}},
        {"runtime": {"backend": "gloo", "slots": 4, "timeout": 60.0}},
    ],
    ids=lambda sections: next(iter(sections)),
)
def test_what_does_not_change_the_weights_may_change(run_dir, sections):
    assert round_to_resume(run_dir, configuration(**sections), "auto") == 20


@pytest.mark.parametrize(
    "sections", [{"runtime": {"precision": "bf16"}}, {"data": {"augment": False}}, {"wire": {"uplink_values": "int8"}}]
)
def test_what_stands_beside_it_may_not(run_dir, sections):
    assert refusal(run_dir, configuration(**sections)).startswith("the directory holds another configuration's run")


@pytest.mark.parametrize(
    ("sections", "rounds"),
    [
        ({"optimizer": {"schedule": "cosine"}}, 501),
        ({"method": {"name": "feddst"}}, 502),  # adjusts its mask in the first half of the rounds
        ({"method": {"name": "prunefl", "adjust_every": 40}}, 520),  # rounds 481 to 500 had no adjustment to come
    ],
    ids=["cosine", "feddst", "prunefl"],
)
def test_what_looks_at_the_number_of_rounds_fixes_it(tmp_path, sections, rounds):
    configured(tmp_path, to_tree(configuration(**sections)))
    longer = configuration(**sections, federation={"rounds": rounds})
    assert refusal(tmp_path, longer).endswith("different: federation.rounds")


@pytest.mark.parametrize(
    ("method", "rounds"),
    [
        ({"name": "feddst", "adjust_until": 200}, 1000),
        ({"name": "feddst"}, 501),
        ({"name": "prunefl"}, 520),
        ({"name": "prunefl", "adjust_every": 40}, 519),
        ({"name": "prunefl", "adjust_every": 40}, 100),
        ({"name": "prunefl", "adjust_every": 40, "adjust_until": 510}, 520),
        ({"name": "prunefl", "adjust_every": 40, "accumulate": "round"}, 520),
        ({"name": "flash", "variant": "jmwst"}, 1000),
    ],
)
def test_the_number_of_rounds_may_change_where_those_that_are_done_stay_the_same(tmp_path, method, rounds):
    configured(tmp_path, to_tree(configuration(method=method)))
    longer = configuration(method=method, federation={"rounds": rounds})
    assert round_to_resume(tmp_path, longer, "auto") is None


@pytest.mark.parametrize(
    ("raw", "reason"), [(b"\xff\xfe\x00", "not UTF-8 text"), (b"a: [", "not valid YAML"), (b"- a", "a mapping")]
)
def test_a_damaged_configuration_is_refused(run_dir, raw, reason):
    (run_dir / "config.yaml").write_bytes(raw)
    assert reason in refusal(run_dir)


def test_a_file_in_the_directorys_place_is_refused(tmp_path):
    path = tmp_path / "run"
    path.write_text("mine")
    assert refusal(path) == "cannot read the run's configuration: Not a directory"
    assert refusal(path / "deeper") == "cannot read the run's configuration: Not a directory"
    assert path.read_text() == "mine"


# --- claiming


def test_claim_writes_the_resolved_configuration(tmp_path):
    config = configuration(seed=5, optimizer={"lr": 0.001})
    configured(tmp_path / "a" / "b", to_tree(config))
    text = (tmp_path / "a" / "b" / "config.yaml").read_text()
    assert yaml.safe_load(text) == to_tree(config)
    assert parse_config(yaml.safe_load(text), "here") == config


@pytest.mark.parametrize("place", ["/proc/run", "file/run", "file"])
def test_a_directory_that_cannot_be_made_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="the run directory cannot be written: "):
        configured(tmp_path / place, to_tree(Config()))


def test_a_directory_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def read_only(path, text):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(run_directory, "write_text", read_only)
    with pytest.raises(UserError) as caught:
        configured(tmp_path, to_tree(Config()))
    assert str(caught.value).split("\n") == [
        "the run directory cannot be written: Read-only file system",
        f"where: {tmp_path}",
        "mend: choose --run-dir",
    ]


# --- the batch script


def test_a_batch_jobs_script_is_kept(tmp_path, monkeypatch):
    script = tmp_path / "spool" / "slurm_script"
    script.parent.mkdir()
    script.write_bytes(b"#!/bin/bash\n# L\xe4uft\n")  # in whatever encoding
    monkeypatch.setenv("FEDMEF_BATCH_SCRIPT", str(script))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    configured(tmp_path / "run", to_tree(Config()))
    assert (tmp_path / "run" / "slurm" / "17.sbatch").read_bytes() == script.read_bytes()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_JOB_ID": "17"},
        {"SLURM_JOB_ID": "17", "FEDMEF_BATCH_SCRIPT": "gone"},
        {"SLURM_JOB_ID": "17", "FEDMEF_BATCH_SCRIPT": "x" * 300},  # cannot even be looked at, as in another's folder
        {"SLURM_JOB_ID": "17", "FEDMEF_BATCH_SCRIPT": sys.executable},  # a shell that has sourced common.sh
    ],
    ids=["neither", "job", "gone", "out of reach", "program"],
)
def test_without_a_batch_script_there_is_nothing_to_keep(tmp_path, monkeypatch, variables):
    for name in ("FEDMEF_BATCH_SCRIPT", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    configured(tmp_path / "run", to_tree(Config()))
    assert not (tmp_path / "run" / "slurm").exists()
