"""Every command and snippet of README and docs.

All are read by the parsers that would read them. Those of the pages that lead a newcomer by the hand are run, in order,
in a folder as `init` writes it, with two short rounds a run.
"""

import ast
import json
import os
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from snippets import PAGES, ROOT, blocks, commands, ours, written_out
from tiny import tiny
from typer.main import get_command

import fedmef_dist
from fedmef_dist.base.errors import UserError
from fedmef_dist.cli import _OVERRIDE, app, main
from fedmef_dist.commands.init import init_command
from fedmef_dist.config import Config, ConfigFile, known_keys, parse_config
from fedmef_dist.scaling.cluster_file import Cluster
from fedmef_dist.session.sweep import load_sweep

# The pages of a session share a folder: what one makes, the next one reads.
SESSIONS = {
    "README": ["README.md", "docs/compare.md"],
    "tutorial": [
        f"docs/tutorial/{name}.md"
        for name in ("first-run", "look-at-a-run", "change-something", "several-ranks", "sweep")
    ],
    "examples": ["examples/README.md", "docs/howto/own-method.md", "docs/howto/own-tracker.md"],
    "own": ["docs/data.md", "docs/howto/own-data.md", "docs/howto/own-model.md", "docs/howto/from-python.md"],
    "how-to": ["docs/howto/memory-plan.md", "docs/howto/wandb-offline.md", "docs/results/extrusion.md"],
}
SMALL = ["federation.rounds=2", "federation.clients_per_round=2", "federation.local_epochs=1", "evaluation.every=1"]
QUIET = ["tracking.console=false", "tracking.wandb.mode=disabled"]
FREE = ("digits", "arrays", "synthetic")
SOURCES = [path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")]
_COMMANDS = get_command(app).commands
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).with_suffix("").as_posix())


@contextmanager
def working_in(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def walk(page):
    """Each command of a page's shell blocks, with the folder of the repository that it is typed in."""
    here = ROOT
    for block in blocks(page):
        if block.language in ("bash", "sh", "console"):
            for command in commands(block.text):
                if command[0] == "cd":
                    folder = (here / command[1]).resolve()
                    here = folder if folder.is_dir() else ROOT  # what `init` makes is like the repository
                yield command, here


@every_page
def test_commands_are_understood(page):
    """Options and choices exist, files that are named are there, and configurations take the overrides."""
    for command, here in walk(page):
        with working_in(here):
            for word in command:
                named = re.search(r"(?:^|=)((?:configs|slurm|launch|benchmarks|examples|tests)/[\w./-]+\.\w+)$", word)
                assert not named or (here / named[1]).exists() or (ROOT / named[1]).exists(), command
            arguments = ours(command)
            if command[0] == "make":
                targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
                assert {word for word in command[1:] if "=" not in word} <= {*targets}, command
            if arguments:
                understood(arguments, command)


def understood(arguments, command):
    given = [_OVERRIDE.sub("", argument) for argument in arguments]
    if given[0] in ("--help", "-h", "--version"):
        return
    values = _COMMANDS[given[0]].make_context(given[0], given[1:]).params
    config, overrides = values.get("config"), values.get("overrides") or []
    if config and config.is_file() and written_out(overrides):
        ConfigFile(config).with_overrides(overrides)


@every_page
def test_snippets_are_read(page):
    keys = {*known_keys(Config)}
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text)
        elif block.language == "yaml":
            tree = yaml.safe_load(block.text)
            if "grid" in tree:
                assert {key for key in tree["grid"] if "." in key} <= keys | {"method.density"}
            elif "ranks_per_node" in tree:
                Cluster.model_validate(tree)
            else:
                parse_config(tree, str(page))


def test_the_checks_see_what_is_wrong(tmp_path):
    page = tmp_path / "page.md"
    for line in (
        "fedmef-dist run configs/quickstart.yaml methd.density=0.1",
        "fedmef-dist run configs/quickstart.yaml --resum must",
        "fedmef-dist run configs/nowhere.yaml",
        "torchrun --nproc-per-node 2 -m fedmef_dist rum x",
        "make run && make nothing",
    ):
        page.write_text(f"```bash\n{line}   # as it should not be\n```\n")
        with pytest.raises(Exception, match=r"methd|resum|nowhere|rum|nothing"):
            test_commands_are_understood(page)
    page.write_text("1. x\n\n    ```yaml\n    sed: 1\n    ```\n")
    with pytest.raises(UserError, match="sed"):
        test_snippets_are_read(page)


@pytest.fixture
def small(monkeypatch):
    """Runs are short, whatever starts them, and the ranks of a sweep are this process."""
    original = ConfigFile.with_overrides

    def shortened(self, overrides):
        return original(self, [*overrides, *SMALL, *QUIET])

    monkeypatch.setattr(ConfigFile, "with_overrides", shortened)
    monkeypatch.setenv("WANDB_RUN_GROUP", "docs")  # which a cell of a sweep sets where it is not set
    monkeypatch.setattr("fedmef_dist.session.sweep.run_ranks", lambda arguments, ranks: typed(arguments))


def typed(arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return left.value.code or 0


@pytest.mark.parametrize("session", SESSIONS)
@pytest.mark.usefixtures("small")
def test_pages_for_newcomers_run(session, outside, capsys):
    init_command(outside)
    names, ran, top = {}, 0, outside
    for page in SESSIONS[session]:
        os.chdir(top)
        for block in blocks(ROOT / page):
            if block.title:
                Path(block.title).write_text(block.text)
            elif block.language == "python" and not any(block.text in source for source in SOURCES):
                exec(compile(block.text, page, "exec"), names)
                ran += 1
            elif block.language in ("bash", "sh"):
                for command in commands(block.text):
                    if command[0] == "cd":
                        os.chdir(command[1])
                        top = Path.cwd() if Path("configs").is_dir() else top
                    elif can_run(command):
                        arguments = [name for word in ours(command) for name in spread(word)]
                        assert typed(arguments) == 0, f"{page}: {command}\n{capsys.readouterr().err}"
                        ran += 1
    assert ran >= 2


def can_run(command):
    """Whether a command needs nothing that is not here: a launcher, Slurm, a data set, a run that was left out."""
    arguments = ours(command)
    if command[0] not in ("fedmef-dist", ".venv/bin/fedmef-dist") or not arguments or not written_out(command):
        return False
    values = _COMMANDS[arguments[0]].make_context(arguments[0], arguments[1:]).params
    match arguments[0]:
        case "submit":
            return bool(values["dry_run"])
        case "check":
            return arguments[1].startswith("sparse_evolution")  # one is enough: each plays nine small runs
        case "scale" | "wandb-sync":
            return False
        case "sweep":
            return load_sweep(values["grid"], []).config.path.name == "quickstart.yaml"
        case "run" | "plan" | "memory" | "data":
            config, _ = ConfigFile(values["config"]).with_overrides(values["overrides"] or [])
            return config.data.dataset in FREE or config.data.is_guest
    runs = values.get("run_dirs") or [values["run_dir"]] if {"run_dirs", "run_dir"} & {*values} else []
    return all(Path(name).exists() for run in runs for name in spread(str(run)))


def spread(word):
    """What a shell makes of it: the files that a pattern matches, else the word itself."""
    return sorted(map(str, Path().glob(word))) or [word] if "*" in word else [word]


def test_every_python_snippet_runs_or_stands_in_an_example():
    run = {ROOT / page for pages in SESSIONS.values() for page in pages}
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python" and page not in run:
                assert any(block.text in source for source in SOURCES), f"{page}\n{block.text}"


def test_the_notebook_has_the_method_of_the_example():
    cells = json.loads((ROOT / "examples" / "own_method.ipynb").read_text())["cells"]
    method = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert (ROOT / "examples" / "sparse_evolution.py").read_text().endswith(f"\n\n{method}\n")
    assert len(method.splitlines()) <= 40


@pytest.mark.cluster
def test_the_notebook_runs(outside, monkeypatch, capsys):
    """What its cells print is what is kept in it, but for numbers, which depend on the kind of processor."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    init_command(outside)
    os.chdir("examples")
    names = {"__name__": "__main__"}
    capsys.readouterr()
    for number, cell in enumerate(json.loads(Path("own_method.ipynb").read_text())["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
            kept = "".join(text for output in cell["outputs"] for text in output["text"])
            printed = capsys.readouterr().out
            assert re.sub(r"digest \w+|\d", "", printed) == re.sub(r"digest \w+|\d", "", kept)


def test_every_key_that_the_page_on_data_names_is_there():
    named = set(re.findall(r"`(data\.[a-z_]+(?:\.[a-z_]+)*)", (ROOT / "docs" / "data.md").read_text()))
    assert named
    assert named - {*known_keys(Config)} == set()


def test_the_page_on_metrics_has_all_that_a_run_writes_and_nothing_else(tmp_path):
    tested = {"every": 2, "per_client": 8, "client_groups": "label", "around_adjustment": True}
    federation = {"rounds": 4, "tiers": [{"share": 0.5, "density": 0.3}]}
    run = fedmef_dist.run(tiny(federation=federation, evaluation=tested), tmp_path)
    written = {*run.values, *(key for line in fedmef_dist.read_run(tmp_path).metrics for key in line)}
    for general, own in (
        ("layer_density/NAME", r"layer_density/.*"),
        ("tierN", r"^tier\d"),
        ("cluster/NAME_exchange", r"cluster/\w+_exchange"),
        ("label_K", r"label_\d"),
    ):
        written = {re.sub(own, general, key) for key in written}
    named = set(re.findall(r"`([\w/]+)`", (ROOT / "docs" / "metrics.md").read_text()))
    assert written - named == set()
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "fedmef_dist").rglob("*.py"))
    others = {name for name in named - written if re.search(r"\w/\w", name)} - {"eval/size_K_accuracy"}
    assert {name for name in others if f'"{name}"' not in source} == set()
