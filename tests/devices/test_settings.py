import pytest
from pydantic import ValidationError

from fedmef_dist.base.errors import UserError
from fedmef_dist.devices.settings import DeviceSettings, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("150MB", 150_000_000), ("1.5 GB", 1_500_000_000), ("64MiB", 2**26), ("2048", 2048), ("12kB", 12_000), ("7B", 7)],
)
def test_sizes(text, size):
    assert parse_size(text, "here") == size
    assert DeviceSettings(budget=text).budget == text


@pytest.mark.parametrize("text", ["", "MB", "-5MB", "0MB", "12mb", "1e6", "1,5GB", "nan", "9" * 400 + "MB"])
def test_what_is_no_size(text):
    with pytest.raises(UserError, match="is no size"):
        parse_size(text, "here")
    with pytest.raises(ValidationError, match="is no size"):
        DeviceSettings(budget=text)
