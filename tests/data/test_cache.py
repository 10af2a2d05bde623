import hashlib
import multiprocessing
import os
import pickle
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import data_files
import numpy as np
import pytest
import torch

from fedmef_dist.base.errors import UserError
from fedmef_dist.data import cache
from fedmef_dist.data.cache import Source, load_cached
from fedmef_dist.data.dataset import Dataset, Split


class Reader:
    """A source of one file, whose bytes are the labels; counts how often it is decoded."""

    def __init__(self, root, labels=(0, 1, 2)):
        self.path = root / "labels"
        self.path.write_bytes(bytes(labels))
        self.decoded = 0

    def read(self):
        self.decoded += 1
        labels = torch.tensor(list(self.path.read_bytes()))
        images = torch.from_numpy(data_files.pixels(len(labels), 4, 5, 3)).permute(0, 3, 1, 2)
        split = Split(images, labels)
        return Dataset("toy", split, split, 3, (0.5,) * 3, (0.25,) * 3, 1, True, owners=labels.flip(0))

    def source(self, **keys):
        return Source("toy", [self.path], self.read, **keys)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "data").mkdir()
    return Reader(tmp_path / "data")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def entries(root):
    return sorted(path.parent for path in root.rglob("dataset.json"))


def same(one, other):
    for left, right in ((one.train, other.train), (one.test, other.test)):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.labels, right.labels)
    assert torch.equal(one.owners, other.owners)
    assert one.test_owners is other.test_owners is None
    assert replace(one, train=None, test=None, owners=None) == replace(other, train=None, test=None, owners=None)


def test_files_are_decoded_once(tmp_path, reader):
    for _ in range(3):
        same(load_cached(reader.source(), tmp_path / "data"), reader.read())
    assert reader.decoded == 1 + 3
    assert len(entries(tmp_path)) == 1
    assert entries(tmp_path)[0].parent == tmp_path / "data/.fedmef_dist/toy"


def test_the_arrays_are_mapped_and_writing_to_them_changes_no_file(tmp_path, reader):
    load_cached(reader.source(), tmp_path / "data")
    data = load_cached(reader.source(), tmp_path / "data")
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        assert "train-images.npy" in maps.read()
    data.train.images.zero_()
    assert load_cached(reader.source(), tmp_path / "data").train.images.any()


def test_a_changed_source_is_decoded_again_and_the_old_entry_goes(tmp_path, reader):
    load_cached(reader.source(), tmp_path / "data")
    before = entries(tmp_path)
    reader.path.write_bytes(bytes([2, 2, 0, 1]))
    assert load_cached(reader.source(), tmp_path / "data").train.labels.tolist() == [2, 2, 0, 1]
    assert len(entries(tmp_path)) == 1
    assert entries(tmp_path) != before
    os.utime(reader.path, ns=(1, 1))  # the same size, another time
    load_cached(reader.source(), tmp_path / "data")
    assert reader.decoded == 3


def test_options_have_entries_of_their_own(tmp_path, reader):
    for size in (8, 16, 8):
        load_cached(reader.source(options=(size,)), tmp_path / "data")
    assert reader.decoded == 2
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize("missing", [True, False])
def test_the_users_cache_serves_where_the_folder_cannot_be_written(tmp_path, reader, missing):
    root = tmp_path / ("nothing" if missing else "data")
    if not missing:
        (root / ".fedmef_dist").write_text("in the way")  # stands in for a read-only folder, which root may write to
    for _ in range(2):
        load_cached(reader.source(), root)
    assert reader.decoded == 1
    assert [path.is_relative_to(tmp_path / "home/fedmef_dist") for path in entries(tmp_path)] == [True]
    assert missing is not root.exists()


def test_without_any_place_the_files_are_decoded_every_time(tmp_path, reader, caplog):
    (tmp_path / "home").write_text("in the way")
    (tmp_path / "data/.fedmef_dist").write_text("in the way")
    for _ in range(2):
        same(load_cached(reader.source(), tmp_path / "data"), reader.read())
    assert "no place for a cache" in caplog.text
    assert reader.decoded == 2 + 2


def test_a_full_disk_costs_the_cache_only(tmp_path, reader, monkeypatch, caplog):
    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "save", no_space)
    same(load_cached(reader.source(), tmp_path / "data"), reader.read())
    assert "No space left" in caplog.text
    assert names(tmp_path / "data/.fedmef_dist/toy") == [".lock"]


def test_a_source_that_cannot_be_read_leaves_the_cache_as_it_was(tmp_path, reader):
    load_cached(reader.source(), tmp_path / "data")
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}

    def damaged():
        raise UserError("a data file is damaged")

    with pytest.raises(UserError, match="is damaged"):
        load_cached(Source("toy", [reader.path], damaged, options=(1,)), tmp_path / "data")
    assert {path: path.read_bytes() for path in before} == before
    assert len(entries(tmp_path)) == 1


# --- hostile and broken entries


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def flip_header(entry, old, new):
    path = entry / "train-images.npy"
    path.write_bytes(path.read_bytes().replace(old, new, 1))


def edit(entry, old, new):
    path = entry / "dataset.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


NOT_FOUND = "[Errno 2] No such file or directory: '{path}'"
NO_LABEL = "test: not a label of 0 to 2 for every image"
NO_DESCRIPTION = "not a description of a data set"


@pytest.mark.parametrize(
    ("spoil", "name", "reason"),
    [
        (
            lambda entry: (entry / "train-images.npy").write_bytes(b""),
            "train-images.npy",
            "EOF: reading magic string, expected 8 bytes got 0",
        ),
        (
            lambda entry: (entry / "train-images.npy").write_bytes(pickle.dumps(Bomb())),
            "train-images.npy",
            r"""the magic string is not correct; expected b'\x93NUMPY', got b'\x80\x04\x95"\x00\x00'""",
        ),
        (
            lambda entry: np.save(entry / "train-images.npy", np.array([Bomb()], object)),
            "train-images.npy",
            "Array can't be memory-mapped: Python objects in dtype.",
        ),
        (
            lambda entry: np.save(entry / "train-images.npy", np.zeros((3, 4, 5, 3))),
            "train-images.npy",
            "expected uint8 (3, 4, 5, 3), found float64 (3, 4, 5, 3)",
        ),
        (
            lambda entry: np.save(entry / "train-images.npy", np.zeros((2, 4, 5, 3), np.uint8)),
            "train-images.npy",
            "expected uint8 (3, 4, 5, 3), found uint8 (2, 4, 5, 3)",
        ),
        (
            lambda entry: os.truncate(entry / "train-images.npy", 200),
            "train-images.npy",
            "mmap length is greater than file size",
        ),
        (
            lambda entry: flip_header(entry, b"(3, 4, 5, 3), }" + b" " * 20, b"(9" + b"9" * 20 + b", 4, 5, 3), }"),
            "train-images.npy",
            "Python int too large to convert to C long",
        ),
        (
            lambda entry: (
                np.save(entry / "train-labels.npy", np.array(["a", "b", "c"])),
                edit(entry, '"int64"', '"<U1"'),
            ),
            "train-labels.npy",
            "can't convert np.ndarray of type numpy.str_.",
        ),
        (lambda entry: (entry / "test-labels.npy").unlink(), "test-labels.npy", NOT_FOUND),
        # What disagrees between the arrays is found once the last one is open.
        (lambda entry: np.save(entry / "test-labels.npy", np.array([0, 3, 1])), "test-labels.npy", NO_LABEL),
        (lambda entry: np.save(entry / "test-labels.npy", np.array([0, -1, 1])), "test-labels.npy", NO_LABEL),
        (lambda entry: (entry / "dataset.json").write_bytes(b"\xff\xfe"), "dataset.json", NO_DESCRIPTION),
        (lambda entry: (entry / "dataset.json").write_text("[" * 100_000), "dataset.json", NO_DESCRIPTION),
        (lambda entry: edit(entry, '"classes": 3', '"classes": "3"'), "dataset.json", NO_DESCRIPTION),
        (lambda entry: edit(entry, '"train-images"', '"../../labels"'), "labels.npy", NOT_FOUND),
        (
            lambda entry: edit(entry, '"fingerprint": "', '"fingerprint": "0'),
            "dataset.json",
            "it describes other files",
        ),
        (
            lambda entry: edit(entry, "0.25,", "0.25, 0.25,"),
            "test-labels.npy",
            "not a mean and a deviation for every channel",
        ),
    ],
)
def test_an_entry_that_is_not_what_was_written_is_refused(tmp_path, reader, monkeypatch, spoil, name, reason):
    monkeypatch.chdir(tmp_path)
    load_cached(reader.source(), tmp_path / "data")
    (entry,) = entries(tmp_path)
    spoil(entry)
    with pytest.raises(UserError) as caught:
        load_cached(reader.source(), tmp_path / "data")
    assert caught.value.what.startswith("a file of the cache is damaged")
    assert caught.value.where.startswith(f"{entry}/")
    assert caught.value.where.endswith(name)
    assert caught.value.mend == f"delete {entry}; it will be made anew"
    assert not (tmp_path / "exploded").exists()
    shutil.rmtree(entry)
    same(load_cached(reader.source(), tmp_path / "data"), reader.read())


# --- digests


def test_one_flipped_byte_of_a_cached_array_is_noticed(tmp_path, reader):
    load_cached(reader.source(), tmp_path / "data")
    (entry,) = entries(tmp_path)
    for path in sorted(entry.glob("*.npy")):
        content = path.read_bytes()
        path.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
        with pytest.raises(UserError, match=r"another SHA-256|not a label"):
            load_cached(reader.source(), tmp_path / "data")
        path.write_bytes(content)
    load_cached(reader.source(), tmp_path / "data")


def test_ranks_that_share_a_node_leave_the_digest_to_the_first(tmp_path, reader):
    load_cached(reader.source(), tmp_path / "data")
    (entry,) = entries(tmp_path)
    path = entry / "train-images.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match="another SHA-256"):
        load_cached(reader.source(), tmp_path / "data", verify=True)
    assert load_cached(reader.source(), tmp_path / "data", verify=False) is not None


def test_the_digest_depends_on_the_samples_alone(tmp_path, reader):
    plain = reader.read()
    cached = load_cached(reader.source(options=(1,)), tmp_path / "data")
    other = replace(
        plain, name="x", mean=(0.1,) * 3, pad=9, train=Split(plain.train.images.clone(), plain.train.labels)
    )
    assert plain.digest == cached.digest == other.digest == cached.to("cpu").digest
    assert replace(plain, owners=None).digest != plain.digest
    assert replace(plain, train=Split(plain.train.images, plain.train.labels.flip(0))).digest != plain.digest
    assert replace(plain, train=plain.train.take(torch.tensor([0, 1]))).digest != plain.digest


def test_the_digest_is_that_of_the_formula(reader):
    """Stays the same from release to release: summaries of runs hold it."""
    images, labels = torch.arange(24, dtype=torch.uint8).view(1, 2, 3, 4), torch.tensor([1])
    found = Split(images.permute(0, 3, 1, 2), labels).digest  # (N, H, W, C) is (1, 2, 3, 4)
    text = b"images" + b"('torch.uint8', (1, 2, 3, 4))" + bytes(range(24)) + b"('torch.int64', (1,))" + b"\1" + bytes(7)
    assert found == hashlib.sha256(text).hexdigest()


# --- several people


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path, reader):
    def read():
        reader.path.write_bytes(bytes([2, 1, 0, 0]))
        return reader.read()

    with pytest.raises(UserError, match="the files of toy changed while they were read"):
        load_cached(Source("toy", [reader.path], read), tmp_path / "data")
    assert not entries(tmp_path)
    assert load_cached(reader.source(), tmp_path / "data").train.labels.tolist() == [2, 1, 0, 0]


def test_a_lock_that_is_a_link_empties_nothing(tmp_path, reader):
    place = tmp_path / "data/.fedmef_dist/toy"
    place.mkdir(parents=True)
    (tmp_path / "precious").write_text("a year's work")
    (place / ".lock").symlink_to(tmp_path / "precious")
    same(load_cached(reader.source(), tmp_path / "data"), reader.read())
    assert (tmp_path / "precious").read_text() == "a year's work"
    assert entries(tmp_path)[0].is_relative_to(tmp_path / "home")
    (place / ".lock").unlink()
    os.mkfifo(place / ".lock")
    load_cached(reader.source(options=(1,)), tmp_path / "data")


def test_what_a_colleague_put_beside_the_entries_stays(tmp_path, reader):
    load_cached(reader.source(), tmp_path / "data")
    other = entries(tmp_path)[0].parent / "notes"
    other.mkdir()
    os.utime(reader.path, ns=(1, 1))
    load_cached(reader.source(), tmp_path / "data")
    assert other.is_dir()
    assert len(entries(tmp_path)) == 1


def as_user(user, umask, root, home, results):
    """Loads in the place of another user; root alone can become one."""
    os.environ["XDG_CACHE_HOME"] = str(home)
    os.umask(umask)
    os.setgid(user)
    os.setuid(user)
    reader = Reader.__new__(Reader)
    reader.path, reader.decoded = root / "labels", 0
    try:
        data = load_cached(reader.source(), root)
        results.put((reader.decoded, data.digest))
    except BaseException as error:
        results.put((repr(error), ""))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can take other users' places")
@pytest.mark.parametrize(("umask", "decoded"), [(0o077, 1), (0o027, 1), (0o022, 0)])
def test_two_users_with_any_umask_get_the_same(umask, decoded):
    """Where the second cannot read what the first has put into the shared folder, he has a cache of his own."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o777)
        (root / "data").mkdir()
        Reader(root / "data")
        (root / "data").chmod(0o1777)
        context = multiprocessing.get_context("fork")
        found = []
        for user, mask in ((4001, umask), (4002, 0o022), (4001, umask)):
            home, results = root / str(user), context.Queue()
            home.mkdir(exist_ok=True)
            home.chmod(0o777)
            process = context.Process(target=as_user, args=(user, mask, root / "data", home, results))
            process.start()
            found.append(results.get(timeout=60))
            process.join()
        assert [count for count, _ in found] == [1, decoded, 0]
        assert len({digest for _, digest in found}) == 1


def test_a_user_without_a_home_has_no_cache_there(tmp_path, reader, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("fedmef_dist.data.cache.Path.home", homeless)
    load_cached(reader.source(), tmp_path / "data")
    assert len(entries(tmp_path)) == 1
    same(load_cached(reader.source(), tmp_path / "nothing"), reader.read())


# --- several processes


def build(root, barrier, results):
    reader = Reader.__new__(Reader)
    reader.path, reader.decoded = root / "labels", 0
    barrier.wait()
    data = load_cached(reader.source(), root)
    results.put((reader.decoded, data.train.images.sum().item()))


@pytest.mark.parametrize("locks", [True, False])
def test_processes_that_come_at_once_get_the_same(tmp_path, reader, monkeypatch, locks):
    if not locks:

        def no_locks(*_):
            raise OSError(37, "No locks available")

        monkeypatch.setattr("fedmef_dist.data.files.fcntl.flock", no_locks)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=build, args=(tmp_path / "data", barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len({total for _, total in found}) == 1
    assert sum(decoded for decoded, _ in found) == 1 or not locks
    assert len(entries(tmp_path)) == 1
    assert names(entries(tmp_path)[0].parent) == [".lock", entries(tmp_path)[0].name]


def test_without_a_home_there_is_only_the_place_beside_the_files(monkeypatch, tmp_path):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    source = Source("x", (), list)
    assert cache._places(source, tmp_path) == [tmp_path / ".fedmef_dist" / "x"]


def test_a_root_that_is_a_loop_of_links_leaves_the_users_cache(tmp_path, reader, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "loop").symlink_to("loop")
    assert len(load_cached(reader.source(), tmp_path / "loop").train) == 3
