import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, socket, sys
from fedmef_dist.base.streams import open_standard_streams

open_standard_streams()
print("lost", flush=True)
print("lost too", file=sys.stderr)
first, second = socket.socketpair()
pid = os.fork()
if pid == 0:
    os.execv("/bin/sh", ["sh", "-c", "echo from a child; echo from a child >&2"])
os.waitpid(pid, 0)
facts = {
    "files": [os.readlink(f"/proc/self/fd/{number}") for number in range(3)],
    "inherited": [os.get_inheritable(number) for number in range(3)],
    "socket": min(first.fileno(), second.fileno()),
    "streams": [stream.fileno() for stream in (sys.stdin, sys.stdout, sys.stderr)],
}
open(sys.argv[1], "w").write(json.dumps(facts))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_what_was_closed_is_the_null_device_before_anything_else_takes_its_number(closed, tmp_path):
    command = f'"$@" {closed}'
    done = subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, "-c", PROGRAM, tmp_path / "facts"], capture_output=True, text=True
    )
    assert done.returncode == 0
    facts = json.loads((tmp_path / "facts").read_text())
    signs = ["<&-", ">&-", "2>&-"]
    assert all(file == "/dev/null" for file, sign in zip(facts["files"], signs, strict=True) if sign in closed.split())
    assert all(facts["inherited"])
    assert facts["socket"] >= 3
    assert facts["streams"] == [0, 1, 2]
    assert done.stdout == ("" if ">&-" in closed.split() else "lost\nfrom a child\n")
    assert done.stderr == ("" if "2>&-" in closed.split() else "lost too\nfrom a child\n")


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1:surrogateescape"])
def test_a_character_that_the_locale_lacks_is_written_out(encoding):
    program = (
        "from fedmef_dist.base.streams import open_standard_streams as opened; opened(); print('0.5 ± 0.1 → \\udcff')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout in (b"0.5 \\xb1 0.1 \\u2192 \\udcff\n", b"0.5 \xb1 0.1 \\u2192 \\udcff\n")
