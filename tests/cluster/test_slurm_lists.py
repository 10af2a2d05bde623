import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.base.errors import UserError
from fedmef_dist.cluster.slurm import expand_hosts, expand_tasks, node_address


@pytest.mark.parametrize(
    ("nodelist", "hosts"),
    [
        ("localhost", ["localhost"]),
        ("n[1-2,5]", ["n1", "n2", "n5"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("n1,m[2-3],gpu-a", ["n1", "m2", "m3", "gpu-a"]),
        ("rack[1-2]node[01,03]", ["rack1node01", "rack1node03", "rack2node01", "rack2node03"]),
        ("n[1-2]-ib.cluster.org", ["n1-ib.cluster.org", "n2-ib.cluster.org"]),
    ],
)
def test_host_lists_expand_in_order(nodelist, hosts):
    assert expand_hosts(nodelist) == hosts


@pytest.mark.parametrize("nodelist", ["", ",", "n[1-2", "n]1[", "n[a-b]", "n[]", "n1,,n2", "n[1-]"])
def test_malformed_host_lists_are_refused(nodelist):
    with pytest.raises(UserError, match="not a Slurm host list"):
        expand_hosts(nodelist)


@given(st.integers(0, 300), st.integers(0, 20), st.integers(1, 5))
def test_a_range_has_every_number_once_with_its_padding(first, more, width):
    start = str(first).zfill(width)
    hosts = expand_hosts(f"n[{start}-{first + more}]")
    assert [int(host[1:]) for host in hosts] == list(range(first, first + more + 1))
    assert hosts[0] == f"n{start}"


def test_tasks_per_node_expand():
    assert expand_tasks("2(x3),1") == [2, 2, 2, 1]
    assert expand_tasks("4") == [4]
    with pytest.raises(UserError, match="not a list of tasks"):
        expand_tasks("2x3")


def test_node_address_is_read_from_scontrol(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    told = r"NodeName=%s\n   NodeAddr=10.0.0.7 NodeHostName=head\n   Reason=L\374fter\n"
    scontrol.write_text(f'#!/bin/sh\nprintf "{told}" "$3"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert node_address("n1") == "10.0.0.7"


def test_without_scontrol_there_is_no_address(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert node_address("n1") is None
