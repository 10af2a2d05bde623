import os

import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.trees import read_tree_file


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "real.yaml").write_text("a: {b: 1}")
    (tmp_path / "link.yaml").symlink_to("folder/real.yaml")
    assert read_tree_file(tmp_path / "link.yaml", "grid") == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("lay", "reason"),
    [
        (os.mkfifo, "not a regular file"),
        (os.mkdir, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to(path.name), "a link"),
        (lambda path: path.write_bytes(b"#" * (1 << 20) + b"\n"), "larger than"),
        (lambda path: path.write_bytes(b"a: \xff"), "not UTF-8 text"),
        (lambda path: None, "No such file"),
    ],
    ids=["FIFO", "directory", "device", "circle of links", "large", "bytes", "nothing"],
)
def test_what_may_never_end_or_is_no_text_is_refused_by_its_name(tmp_path, lay, reason):
    lay(tmp_path / "file.yaml")
    with pytest.raises(UserError, match=f"cannot read the grid: {reason}.*\nwhere: .*file.yaml\nmend: "):
        read_tree_file(tmp_path / "file.yaml", "grid")


def test_a_file_that_is_not_there_is_answered_with_the_nearest_or_with_where_to_get_some(tmp_path):
    (tmp_path / "own_method.yaml").write_text("")
    with pytest.raises(UserError, match=r"mend: did you mean .*/own_method\.yaml\?"):
        read_tree_file(tmp_path / "own_metod.yaml", "configuration")
    with pytest.raises(UserError, match="`fedmef-dist init` writes a folder"):
        read_tree_file(tmp_path / "elsewhere" / "own_method.yaml", "configuration")
