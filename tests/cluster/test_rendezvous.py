import socket
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from fedmef_dist.base.errors import UserError
from fedmef_dist.cluster import rendezvous
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.rendezvous import (
    choose_interface,
    interface_of,
    listening_address,
    meeting_host,
    open_store,
    prepare_gloo,
    resolve,
)

UNKNOWN = "no-such-host.invalid"


def place(launcher="srun", local=1, host=UNKNOWN):
    return Environment(launcher, 0, 2, 0, local, host, 15000)


@pytest.fixture
def names(monkeypatch):
    """Host names that resolve, in place of the machine's own; this machine is called "here"."""
    known = {"localhost": "127.0.0.1"}
    monkeypatch.setattr(rendezvous, "resolve", known.get)
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    return known


def test_numbers_resolve_to_themselves_and_unknown_names_to_nothing():
    assert resolve("127.0.0.1") == "127.0.0.1"
    assert resolve(UNKNOWN) is None
    assert resolve("n" * 64) is None  # which Linux takes for a host name, and DNS does not
    assert resolve("n1..cluster.org") is None


def test_a_name_that_resolves_is_kept(names):
    names["head"] = "10.0.0.1"
    assert meeting_host(place(host="head")) == "head"


def test_ranks_on_one_machine_need_no_name(names):
    assert meeting_host(place(launcher="torchrun", local=2)) == "127.0.0.1"


def test_slurm_knows_the_address_of_a_node_whose_name_does_not_resolve(names, monkeypatch):
    monkeypatch.setattr(rendezvous, "node_address", {UNKNOWN: "10.0.0.7"}.get)
    names["10.0.0.7"] = "10.0.0.7"
    assert meeting_host(place()) == "10.0.0.7"


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_an_unknown_host_is_the_users_error(names, monkeypatch, launcher):
    monkeypatch.setattr(rendezvous, "node_address", lambda node: None)
    with pytest.raises(UserError, match=f"{UNKNOWN} does not resolve"):
        meeting_host(place(launcher=launcher))


def test_the_loopback_interface_is_found_by_its_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.254") is None


def test_gloo_chooses_for_itself_where_that_works(names):
    names["here"] = "10.0.0.5"
    assert choose_interface(place(), "localhost") is None  # our own name leads to a real address


def test_ranks_of_one_machine_stay_on_its_loopback_interface(names):
    assert choose_interface(place(local=2), "localhost") == "lo"


@pytest.mark.parametrize(
    ("host", "local", "address"),
    [
        ("10.0.0.1", 1, "10.0.0.1"),
        ("127.0.0.1", 1, "127.0.0.1"),  # this very number was given to all ranks
        ("head", 1, "10.0.0.7"),
        ("here", 1, ""),  # known as loopback to itself, as something else to the others
        ("here", 2, "127.0.1.1"),
        ("linked", 1, ""),  # to itself by the address of a link, as systemd has it for a name that no file knows
        ("fe80::1%eth0", 1, "fe80::1%eth0"),
        ("six", 1, "2001:db8::1"),
        ("nowhere", 1, ""),
    ],
)
def test_the_store_listens_where_the_others_look_for_it(names, host, local, address):
    names.update({"10.0.0.1": "10.0.0.1", "127.0.0.1": "127.0.0.1", "head": "10.0.0.7", "here": "127.0.1.1"})
    names.update({"linked": "fe80::1%eth0", "fe80::1%eth0": "fe80::1%eth0", "six": "2001:db8::1"})
    assert listening_address(place(local=local), host) == address


def listening_addresses():
    """Addresses (hexadecimal) and ports at which this process's machine listens."""
    tables = [Path("/proc/self/net", name).read_text() for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()[1:]]
    return [fields[1].split(":") for fields in lines if fields[3] == "0A"]


def test_the_store_is_reached_at_its_address_only():
    store = rendezvous._serve(place(local=2), "127.0.0.1", 0, timedelta(seconds=5))
    assert [where for where, port in listening_addresses() if int(port, 16) == store.port] == ["0100007F"]
    client = dist.TCPStore("127.0.0.1", store.port, is_master=False, timeout=timedelta(seconds=5))
    client.set("key", "value")
    assert store.get("key") == b"value"


def loopback_addresses():
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return ["127.0.0.1", "::1"]
    return ["127.0.0.1"]


@pytest.mark.parametrize("address", ["192.0.2.1", ""])
def test_an_address_of_another_machine_falls_back_to_all_interfaces_of_both_kinds(address):
    with rendezvous._listen(address, 0) as bound:
        for found in loopback_addresses():
            socket.create_connection((found, bound.getsockname()[1]), timeout=60).close()


def test_without_addresses_of_ipv6_all_interfaces_are_those_of_ipv4(monkeypatch):
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with rendezvous._listen("", 0) as bound:
        assert bound.getsockname()[0] == "0.0.0.0"


def test_an_attempt_finds_nothing_of_the_one_before_in_torchruns_store(monkeypatch):
    agent = rendezvous._serve(place(local=2), "127.0.0.1", 0, timedelta(seconds=5))
    environment = Environment("torchrun", 0, 2, 0, 2, "127.0.0.1", agent.port)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    first, same = (open_store(environment, timedelta(seconds=5)) for _ in range(2))
    assert first.add("failure/claimed", 1) == 1  # answered, unlike `set`, when it is done
    assert same.check(["failure/claimed"])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not open_store(environment, timedelta(seconds=5)).check(["failure/claimed"])


@pytest.mark.parametrize("name", ["FEDMEF_STORE_KEY", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"])
def test_who_does_not_know_what_the_ranks_were_given_finds_none_of_their_keys(monkeypatch, name):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv(name, "secret")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    rank = open_store(Environment("torchrun", 0, 2, 0, 2, "127.0.0.1", port), timedelta(seconds=5))
    rank.set("watch/deadline", "1.0")
    monkeypatch.setenv(name, "guess")
    stranger = open_store(Environment("torchrun", 1, 2, 1, 2, "127.0.0.1", port), timedelta(seconds=5))
    stranger.set("watch/deadline", "0.0")
    assert stranger.add("failure/claimed", 1) == 1  # answered, unlike `set`, when it is done
    assert rank.get("watch/deadline") == b"1.0"
    assert not rank.check(["failure/claimed"])
    bare = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
    assert not bare.check(["watch/deadline"])
    assert "secret" not in rendezvous._prefix({name: "secret"})


def test_a_port_that_is_taken_is_the_users_error(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = Environment("srun", 0, 2, 0, 2, "127.0.0.1", taken.getsockname()[1])
        with pytest.raises(UserError, match=r"could not meet at 127.0.0.1:.*\n.*Address already in use"):
            open_store(environment, timedelta(seconds=5))


@pytest.mark.parametrize("own", ["127.0.1.1", "fe80::1%eth0", None])
def test_gloo_is_pointed_at_the_interface_that_leads_to_the_meeting_point(names, monkeypatch, own):
    names.update({"head": "10.0.0.1"} if own is None else {"head": "10.0.0.1", "here": own})
    monkeypatch.setattr(rendezvous, "_source_address", {"10.0.0.1": "10.0.0.5"}.get)
    monkeypatch.setattr(rendezvous, "interface_of", {"10.0.0.5": "ib0"}.get)
    assert choose_interface(place(), "head") == "ib0"


def test_the_users_interface_is_not_overwritten(monkeypatch):
    monkeypatch.setattr(rendezvous, "choose_interface", lambda environment, host: "ib0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth9")
    prepare_gloo(place(), "head")
    assert rendezvous.os.environ["GLOO_SOCKET_IFNAME"] == "eth9"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    prepare_gloo(place(), "head")
    assert rendezvous.os.environ["GLOO_SOCKET_IFNAME"] == "ib0"


SHARED = """
import os
from datetime import timedelta
from pathlib import Path
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.rendezvous import open_store

environment = detect(os.environ)
store = open_store(environment, timedelta(seconds=30))
mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm/mpich_shm_" in line]
store.set(f"named {environment.rank}", str([line for line in mapped if not line.endswith("(deleted)")]))
store.wait(["named 0", "named 1"])
print(store.get(f"named {environment.rank}").decode() + f" {bool(mapped)}\\n", end="", flush=True)
store.set(f"left {environment.rank}", "")
if environment.rank == 0:
    store.wait(["left 0", "left 1"])
"""


@pytest.mark.cluster
def test_a_rank_of_mpich_that_dies_leaves_no_shared_memory_behind(launch, tmp_path):
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    done = launch("mpirun", 2, script)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["[] True"] * 2), done.stderr
