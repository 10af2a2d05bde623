from pathlib import Path

import pytest

from fedmef_dist.cli import main
from fedmef_dist.commands import check
from fedmef_dist.session.conformance import Promise


def test_what_a_method_raises_is_shown_letter_by_letter(monkeypatch, capsys):
    texts = ["TypeError: list[int] is no Tensor[float]", "KeyError: '[/b]'", "x\x1b[31m"]
    promises = [Promise(f"promise {number}", text, "mend [it]") for number, text in enumerate(texts)]
    monkeypatch.setattr(check, "check_method", lambda config: (promises, {}))
    assert check.check_command("fedavg", None, []) == 1
    shown = capsys.readouterr().out
    for text in (*texts[:2], r"x\x1b[31m", "mend [it]"):
        assert text in shown


@pytest.mark.parametrize(
    ("words", "path", "overrides"),
    [
        ([], None, []),
        (["x.yaml", "seed=1"], Path("x.yaml"), ["seed=1"]),
        (["method.density=0.3"], None, ["method.density=0.3"]),
        (["--method.density=0.3", "seed=1"], None, ["method.density=0.3", "seed=1"]),
        (["a=b.yaml"], Path("a=b.yaml"), []),
    ],
)
def test_the_small_configuration_takes_changes_too(tmp_path, monkeypatch, words, path, overrides):
    monkeypatch.chdir(tmp_path)
    Path("a=b.yaml").touch()
    asked = []
    monkeypatch.setattr(check, "check_command", lambda *arguments: asked.append(arguments) or 0)
    with pytest.raises(SystemExit):
        main(["check", "static", *words])
    assert asked == [("static", path, overrides)]
