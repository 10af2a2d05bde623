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
