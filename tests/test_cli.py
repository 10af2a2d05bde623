"""The command line from outside: what it prints and with which status it leaves."""

import os
import socket
import subprocess
import sys

import pytest

from fedmef_dist.base.version import VERSION
from fedmef_dist.cli import main


@pytest.fixture
def said(capsys):
    """`said("run", ...)` gives the exit status, standard output and standard error of a command."""

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        return left.value.code or 0, *capsys.readouterr()

    return call


@pytest.mark.parametrize("arguments", [["--version"], ["run", "--version"]])
def test_the_version_is_told_everywhere(said, arguments):
    status, out, _ = said(*arguments)
    assert status == 0
    assert out.startswith(f"fedmef-dist {VERSION}, torch ")


@pytest.mark.parametrize(
    ("terminal", "options", "rank", "lines"),
    [(True, [], None, 1), (True, ["--quiet"], None, 0), (True, [], "1", 0), (False, [], None, 0)],
)
def test_a_run_says_at_once_that_it_starts_where_somebody_waits(said, monkeypatch, terminal, options, rank, lines):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    if rank:
        for name, value in {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "1")
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    _, out, _ = said("run", "nowhere.yaml", *options)
    assert out.count("starts: loads PyTorch") == lines


@pytest.mark.parametrize("arguments", [["-h"], ["run", "-h"], ["compare", "--help"]])
def test_help_has_a_short_option(said, arguments):
    status, out, _ = said(*arguments)
    assert status == 0
    assert "Usage: " in out


def test_the_choices_of_an_option_are_shown(said):
    assert "auto|never|must" in said("run", "-h")[1]
    status, _, err = said("run", "x.yaml", "--resume", "mus")
    assert status == 2
    assert err.splitlines()[0] == "Invalid value for '--resume': 'mus' is not one of 'auto', 'never', 'must'."


@pytest.mark.parametrize(
    ("override", "what", "mend"),
    [
        ("--optimizer.lr=fast", "optimizer.lr: must be a number, got 'fast'", "correct optimizer.lr"),
        ("--seed=x", "seed: must be a whole number, got 'x'", "correct seed"),
        ("optimizer.schedule=cosin", "optimizer.schedule: must be one of exponential, cosine, constant, got 'cosin'",
         "did you mean cosine?"),
        ("server_optimizer.name=fedyogi", "server_optimizer.name: must be one of none, avgm, adam, yogi, got 'fedyogi'",
         "did you mean yogi?"),
        ("method.name=fedprox", "method.name: unknown method 'fedprox'",
         "did you mean method.name=fedavg optimizer.prox_mu=0.01? any method takes prox_mu"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_explained_in_words_of_the_field(said, tmp_path, override, what, mend):
    (tmp_path / "x.yaml").write_text("method: {name: fedavg}\n")
    status, _, err = said("run", str(tmp_path / "x.yaml"), override)
    assert status == 2
    lines = err.splitlines()
    assert (lines[0], lines[2]) == (what, f"mend: {mend}")


def test_mnist_is_not_here_but_its_sisters_are(said, tmp_path):
    (tmp_path / "x.yaml").write_text("data: {dataset: mnist}\n")
    assert "mend: did you mean fashion_mnist?" in said("plan", str(tmp_path / "x.yaml"))[2]


def test_a_wrong_option_is_no_override(said):
    status, _, err = said("run", "x.yaml", "--run-dr=here")
    assert status == 2
    assert err.startswith("No such option: --run-dr")


@pytest.mark.parametrize(
    ("words", "offered"),
    [("fedmef-dist ru", "run"), ("fedmef-dist run x --resume mu", "must"), ("fedmef-dist status --ver", "--verify")],
)
def test_the_shell_completes_commands_options_and_choices(words, offered):
    variables = {
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "_FEDMEF_DIST_COMPLETE": "complete_bash",
    }
    code = "import sys; sys.argv[0] = 'fedmef-dist'; from fedmef_dist.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.stdout.split() == [offered]


@pytest.mark.parametrize(
    "code",
    [
        "from fedmef_dist.base.notices import tell; tell('a notice')",
        "from fedmef_dist.cli import main; main(['run', 'nowhere.yaml'])",
        "from fedmef_dist.cli import main; main(['nothing'])",
    ],
)
def test_what_a_rank_says_is_one_write_or_the_words_of_several_mix(code):
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # keeps writes apart, as a pipe does not
    mine.setblocking(False)
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with mine, its:
        subprocess.run([sys.executable, "-c", code], env=unbuffered, stderr=its, timeout=150, check=False)
        assert mine.recv(1 << 16).endswith(b"\n")
        with pytest.raises(BlockingIOError):
            mine.recv(1 << 16)
