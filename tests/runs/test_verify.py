"""Everything in a run directory must be whole and belong together: each gap is named."""

import json
import os
import shutil

import pytest
from run_dirs import TREE, checkpoint_files, configured, finished, metrics_of, run_rounds

from fedmef_dist.base.atomic import write_json
from fedmef_dist.base.errors import UserError
from fedmef_dist.runs.checkpoint_files import seal
from fedmef_dist.runs.directory import claim
from fedmef_dist.runs.verify import verify
from fedmef_dist.tracking.lines import head_of, split


@pytest.fixture
def run_dir(tmp_path):
    return finished(tmp_path / "run")


def test_a_finished_run_and_every_earlier_state_of_it_are_whole(run_dir):
    verify(run_dir)
    (run_dir / "summary.json").unlink()
    verify(run_dir)
    with (run_dir / "metrics.jsonl").open("ab") as file:
        file.write(b'{"rou')  # killed while it wrote
    verify(run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "metrics.jsonl").unlink()
    verify(run_dir)


def test_a_prolonged_run_is_whole_while_its_summary_is_still_the_old_one(run_dir):
    state = run_rounds(run_dir, 8, first=7, state=head_in_checkpoint(run_dir, 6))
    checkpoint_files(run_dir, 8, state)
    verify(run_dir)


def head_in_checkpoint(run_dir, number):
    return json.loads((run_dir / f"checkpoints/round-{number:06d}/state.json").read_text())["tracker"]


def test_lines_that_only_the_checkpoint_has_are_no_gap(run_dir):
    (run_dir / "summary.json").unlink()
    lines, _ = split((run_dir / "metrics.jsonl").read_bytes())
    (run_dir / "metrics.jsonl").write_bytes(b"".join(lines[:4]))
    shutil.rmtree(run_dir / "checkpoints" / "round-000006")
    checkpoint_files(run_dir, 6, head_of(lines).state(b"".join(lines[4:])))
    verify(run_dir)


def flip(path, place=-5):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def edit(path, **changes):
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, **changes}))


def resign(directory, **changes):
    """A checkpoint that a stranger has changed and sealed."""
    state = json.loads((directory / "state.json").read_text())
    del state["sha256"], state["bytes"]
    write_json(directory / "state.json", seal((directory / "state.safetensors").read_bytes(), {**state, **changes}))


def drop_line(path, number):
    lines, _ = split(path.read_bytes())
    path.write_bytes(b"".join(lines[: number - 1] + lines[number:]))


def double_line(path, number):
    lines, _ = split(path.read_bytes())
    path.write_bytes(b"".join(lines[:number] + lines[number - 1 :]))


def mix(run_dir):
    """The metrics of another run of the same rounds, whole in themselves."""
    lines, _ = split((run_dir / "metrics.jsonl").read_bytes())
    (run_dir / "metrics.jsonl").write_bytes(b"".join(line.replace(b"0.5", b"0.6") for line in lines))


NEWEST = "checkpoints/round-000006"


@pytest.mark.parametrize(
    ("harm", "gap", "place"),
    [
        (lambda run: (run / "config.yaml").unlink(), "there is no config.yaml", ""),
        (lambda run: (run / "config.yaml").write_text("a: [1"), "not valid YAML", "config.yaml"),
        (lambda run: (run / "config.yaml").write_text("a: 1"), "no federation.rounds", "config.yaml"),
        (lambda run: (run / "metrics.jsonl").unlink(), "rounds 1 to 3 are missing", "metrics.jsonl, after line 0"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b""), "rounds 1 to 3 are missing", "after line 0"),
        (lambda run: drop_line(run / "metrics.jsonl", 2), "round 2 is missing before it", "line 2"),
        (lambda run: drop_line(run / "metrics.jsonl", 6), "round 6 is missing: the checkpoint knows 6", "line 5"),
        (lambda run: double_line(run / "metrics.jsonl", 4), "round 4 stands twice", "line 5"),
        (lambda run: (run / "metrics.jsonl").open("a").write("{}\n"), "it has no round", "line 7"),
        (lambda run: (run / "metrics.jsonl").open("a").write('{"rou'), "half a line", "line 7"),
        (mix, "lines were changed after they were written", "lines 1 to 3"),
        (lambda run: flip(run / NEWEST / "state.safetensors"), "content is not what was written", NEWEST),
        (lambda run: (run / NEWEST / "state.safetensors").write_bytes(b""), "content is not what was written", NEWEST),
        (lambda run: edit(run / NEWEST / "state.json", digest="0"), "content is not what was written", NEWEST),
        (lambda run: (run / NEWEST / "state.json").unlink(), "this is no checkpoint", NEWEST),
        (lambda run: (run / "checkpoints/round-999999").mkdir(), "this is no checkpoint", "round-999999"),
        (
            lambda run: resign(run / NEWEST, parts={"model": {"digest": "0" * 64}}),
            "another model/digest than its line",
            NEWEST,
        ),
        (lambda run: resign(run / NEWEST, tracker={}), "vouches for no metrics", NEWEST),
        (lambda run: resign(run / NEWEST, tracker={"a": 1}), "no state of the trackers", NEWEST),
        (lambda run: resign(run / NEWEST, tracker=[]), "no state of the trackers", NEWEST),
        (lambda run: edit(run / "summary.json", rounds=5), "rounds is 5, but metrics/lines 6", "summary.json"),
        (lambda run: edit(run / "summary.json", **{"metrics/digest": "0"}), "do not have the SHA-256", "lines 1 to 6"),
        (lambda run: edit(run / "summary.json", **{"metrics/digest": None}), "vouches for no metrics", "summary.json"),
        (lambda run: edit(run / "summary.json", **{"model/digest": "0"}), "model/digest is '0', but", "summary.json"),
        (
            lambda run: edit(run / "summary.json", **{"wire/total_bytes": 1}),
            "wire/total_bytes is 1, but 600",
            "summary",
        ),
        (lambda run: (run / "summary.json").write_text("["), "summary.json is not what a run writes", "summary.json"),
    ],
)
def test_each_gap_is_named(run_dir, harm, gap, place):
    harm(run_dir)
    with pytest.raises(UserError) as caught:
        verify(run_dir)
    assert gap in caught.value.what
    assert place in caught.value.where
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "summary.json", f"{NEWEST}/state.json"])
@pytest.mark.parametrize("lay", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["FIFO", "device"])
def test_what_is_no_regular_file_is_named_at_once(run_dir, name, lay):
    (run_dir / name).unlink()
    lay(run_dir / name)
    with pytest.raises(UserError, match=r"cannot|this is no checkpoint"):
        verify(run_dir)


def test_a_link_in_place_of_the_checkpoints_is_named(run_dir, tmp_path):
    (run_dir / "checkpoints").rename(tmp_path / "elsewhere")
    (run_dir / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="checkpoints is a link"):
        verify(run_dir)


def test_a_huge_file_of_tensors_is_refused_unread(run_dir):
    with (run_dir / NEWEST / "state.safetensors").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(UserError, match="its content is not what was written"):
        verify(run_dir)


def test_a_run_that_goes_on_meanwhile_is_whole(tmp_path):
    run_dir = tmp_path / "run"
    configured(run_dir, TREE)
    with claim(run_dir, 6) as owner:
        owner.begin(0)
        run_rounds(run_dir, 4, saves=(2,))
        verify(run_dir)
    assert metrics_of(4)["round"] == 4
