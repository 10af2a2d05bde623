"""What a data set's reader tells of its files, and what was found among the samples: small, kept with the arrays."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from fedmef_dist.base.settings import Settings
from fedmef_dist.base.text import printable


class Reading(Settings):
    """What was read, and what was not.

    Attributes:
        files: how many files there were of each kind, as ``PNG, mode L, 28x28``; empty where samples have no files.
        skipped: how often something was passed over, by reason.
        class_names: of the labels, in their order; empty where they are only numbers. They come from folders and
            files, whose bytes may be no text that JSON can hold, and are kept as people are to read them.
    """

    files: dict[str, int] = Field(default_factory=dict)
    skipped: dict[str, int] = Field(default_factory=dict)
    class_names: tuple[Annotated[str, AfterValidator(printable)], ...] = ()

    def plus(self, skipped: Mapping[str, int]) -> "Reading":
        """The same, with more that was passed over."""
        reasons = {**self.skipped, **skipped}
        total = {reason: self.skipped.get(reason, 0) + skipped.get(reason, 0) for reason in reasons}
        return self.model_copy(update={"skipped": total})

    def class_name(self, label: int) -> str:
        """What people call the class."""
        return self.class_names[label] if label < len(self.class_names) else str(label)


class Findings(Settings):
    """Samples that are not what one hopes for. Equal means: every pixel, or every token, is the same.

    Attributes:
        constant: training samples of which every value is the same.
        repeated: training samples that equal an earlier training sample.
        repeated_test: test samples that equal an earlier test sample.
        crossing: test samples that equal a training sample.
        conflicting: samples, of both splits, that equal one with another label.
    """

    constant: int
    repeated: int
    repeated_test: int
    crossing: int
    conflicting: int
