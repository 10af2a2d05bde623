"""What every data set must hold, and what is worth a word: constants, and samples that stand twice."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.digest import in_chunks, sample_hashes
from fedmef_dist.data.numbering import members_of_labels
from fedmef_dist.data.record import Findings
from fedmef_dist.data.text import TextDataset

_NAMED = 3  # files in a message


def checked(dataset: Dataset, files: Sequence[Path] = ()) -> Dataset:
    """The data set with what was found in it.

    Args:
        dataset: as it was decoded.
        files: of the training samples, one each, or else all of its files.

    Raises:
        UserError: all training images are one constant, or all of a class are.
    """
    constant = constant_images(dataset.train)
    refuse_constants(dataset, constant, files)
    return replace(dataset, findings=find(dataset, constant))


def refuse_empty(dataset: Dataset | TextDataset) -> None:
    """Raises UserError where there is nothing to train a model on, or nothing to test it on."""
    is_text = isinstance(dataset, TextDataset)
    for split, part in ((dataset.train, "training"), (dataset.test, "test")):
        if not len(split):
            raise UserError(
                f"the data set has no {part} samples",
                where=f"data.dataset={dataset.name}",
                mend="take a smaller context: a sample needs one character more" if is_text else "choose another",
            )


def constant_images(split: Split) -> np.ndarray:
    """Whether an image has one value in every pixel and channel, bool (N,)."""
    rows = in_chunks(split.images.cpu().permute(0, 2, 3, 1).flatten(1))
    return np.concatenate([(part == part[:, :1]).all(dim=1).numpy() for part in rows])


def refuse_constants(dataset: Dataset, constant: np.ndarray, files: Sequence[Path] = ()) -> None:
    """Raises UserError where every training image of a class, or of all, has the same one value.

    A network can learn nothing from them, and it is almost always the decoding that made them so.
    """
    labels, images = dataset.train.labels.cpu().numpy(), dataset.train.images
    values = images[:, 0, 0, 0].cpu().numpy()
    for members in members_of_labels(labels):
        if not constant[members].all() or len(np.unique(values[members])) > 1:
            continue
        own = [files[place] for place in members.tolist()] if len(files) == len(labels) else files
        named = ", ".join(map(str, own[:_NAMED])) + (", ..." if len(own) > _NAMED else "")
        raise UserError(
            f"class {dataset.reading.class_name(int(labels[members[0]]))}: all {len(members)} training images have the "
            f"value {values[members[0]]} in every pixel",
            where=named or f"data.dataset={dataset.name}",
            mend="look at the files: were they written with another range of values, or is the class empty paper?",
        )


def find(dataset: Dataset, constant: np.ndarray) -> Findings:
    """Constant and equal samples; see :class:`Findings`."""
    train, test = (sample_hashes(split.images.permute(0, 2, 3, 1)) for split in (dataset.train, dataset.test))
    labels = np.concatenate([dataset.train.labels.cpu().numpy(), dataset.test.labels.cpu().numpy()])
    return Findings(
        constant=int(constant.sum()),
        repeated=len(train) - len(np.unique(train)),
        repeated_test=len(test) - len(np.unique(test)),
        crossing=int(np.isin(test, train).sum()),
        conflicting=int(with_two_labels(np.concatenate([train, test]), labels).sum()),
    )


def with_two_labels(hashes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which samples, of those with these hashes (uint64) and labels, equal one that has another label; bool (N,)."""
    _, group = np.unique(hashes, return_inverse=True)
    lowest = np.full(group.max() + 1, np.iinfo(np.int64).max)
    highest = np.full(group.max() + 1, -1)
    np.minimum.at(lowest, group, labels)
    np.maximum.at(highest, group, labels)
    return (lowest != highest)[group]


def notices(dataset: Dataset | TextDataset) -> list[str]:
    """What a run says of its data before it starts, one line each; nothing where there is nothing to say."""
    lines = []
    if dataset.reading.skipped:
        parts = ", ".join(f"{count:,} {reason}" for reason, count in dataset.reading.skipped.items())
        lines.append(f"data: passed over: {parts}")
    found = dataset.findings if isinstance(dataset, Dataset) else None
    if found is not None and (found.crossing or found.conflicting):
        lines.append(
            f"data: {found.crossing:,} test samples equal a training sample, "
            f"{found.conflicting:,} samples equal one with another label; `fedmef-dist data` shows more"
        )
    return lines
