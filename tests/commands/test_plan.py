import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.commands.plan import plan_command


def test_the_command_leaves_no_run_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("model: {name: cnn}\nfederation: {clients: 20, clients_per_round: 5, rounds: 3}")
    plan_command(tmp_path / "c.yaml", ["method.density=0.3", "runtime.backend=mpi"], 2, tmp_path / "p.png")
    assert "density             0.300" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml", "p.png"]
    with pytest.raises(UserError, match="the plot cannot be written"):
        plan_command(tmp_path / "c.yaml", [], 2, tmp_path / "no" / "p.png")
