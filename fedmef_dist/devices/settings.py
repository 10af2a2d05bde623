"""What a simulated device can hold."""

import re

from pydantic import Field, field_validator

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.settings import Settings

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*(|k|M|G|Ki|Mi|Gi)B?", re.ASCII)


class DeviceSettings(Settings):
    """Section ``device``: how much memory a training step may take."""

    budget: str | None = Field(
        None, description="the most that a training step may take at its peak, such as 150MB; null: no plan is made"
    )

    @field_validator("budget")
    @classmethod
    def _is_a_size(cls, text: str | None) -> str | None:
        if text is not None and size_of(text) is None:
            raise ValueError(f"{text!r} is no size; write 150MB, 1.5GB or 64MiB")
        return text


def size_of(text: str) -> int | None:
    """Bytes of a size such as ``150MB`` (10^6 bytes each) or ``64MiB`` (2^20); None where it is no size above 0."""
    match = _SIZE.fullmatch(text.strip())
    return (round(float(match[1]) * _UNITS[match[2]]) or None) if match else None


def parse_size(text: str, where: str) -> int:
    """Bytes of a size. Raises UserError."""
    size = size_of(text)
    if size is None:
        raise UserError(f"{text!r} is no size", where=where, mend="write 150MB, 1.5GB or 64MiB")
    return size
