"""Where the ranks meet: host names, network interfaces and the key-value store that every process group starts from."""

import errno
import fcntl
import hashlib
import ipaddress
import os
import secrets
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from fedmef_dist.base.errors import UserError
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.slurm import node_address
from fedmef_dist.cluster.transport import mpi_world

_SIOCGIFADDR = 0x8915
_OUTSIDE = "198.51.100.1"  # a documentation address: routed like the rest of the world, nothing is sent to it
_ADDRESS_BYTES = 256
_WAITING_RANKS = 4096
# A random word that all ranks are given and nobody else; scripts and `local_ranks` export it.
STORE_KEY = "FEDMEF_STORE_KEY"
# What this process has opened, by address: a program may run several times, and its launcher's address stays. A rank
# that is early for the next run would reach a store that rank 0 is about to close, and rank 0 find its own port in use.
_OPEN: dict[tuple[str, int, bool], dist.TCPStore] = {}


def open_store(environment: Environment, timeout: timedelta, meeting: int = 0) -> dist.Store:
    """The store shared by all ranks: at the launcher's address, or under MPI at one that rank 0 opens and broadcasts.

    `meeting` tells a run from the same program's earlier ones, whose keys are still there.

    Raises UserError where the address cannot be opened or reached within `timeout`.
    """
    if environment.launcher in ("openmpi", "mpich"):
        return _mpi_store(environment, timeout)
    host, port = meeting_host(environment), environment.port or 0
    # torchrun's agent holds a store of its own at this address.
    serves = environment.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        if (host, port, serves) not in _OPEN:
            reach = _serve if serves else _connect
            _OPEN[host, port, serves] = reach(environment, host, port, timeout)
        store = _OPEN[host, port, serves]
        store.set_timeout(timeout)
        return dist.PrefixStore(f"{_prefix(os.environ)} {meeting}", store)
    except (dist.DistError, OSError) as error:
        raise UserError(
            f"the ranks could not meet at {host}:{port}",
            where=f"{str(error).splitlines()[0]}",
            mend=(
                "choose another port: MASTER_PORT (srun), --master-port (torchrun); check that no "
                "firewall is in between"
            ),
        ) from error


def _prefix(environ: Mapping[str, str]) -> str:
    """What comes before every key: a stranger who finds the port does not know it.

    It has FEDMEF_STORE_KEY in it, a random word that the scripts of this project hand to all ranks, and torchrun's run
    id, which is random under ``--standalone``. Torchrun's store outlives the ranks: what an attempt before a restart
    left there must not be taken for new.
    """
    names = (STORE_KEY, "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    words = "\n".join(environ.get(name, "") for name in names)
    return f"fedmef_dist {hashlib.sha256(words.encode(errors='surrogateescape')).hexdigest()}"


def _serve(environment: Environment, host: str, port: int, timeout: timedelta) -> dist.TCPStore:
    """Opens the store at this address of the machine only; torch by itself would listen on every interface."""
    bound = _listen(listening_address(environment, host), port)
    # The store closes the descriptor that it is given.
    return dist.TCPStore(
        host,
        bound.getsockname()[1],
        environment.world_size,
        is_master=True,
        wait_for_workers=False,
        timeout=timeout,
        master_listen_fd=bound.detach(),
    )


def _connect(environment: Environment, host: str, port: int, timeout: timedelta) -> dist.TCPStore:
    return dist.TCPStore(host, port, environment.world_size, is_master=False, timeout=timeout)


def listening_address(environment: Environment, host: str) -> str:
    """The address to listen at so that all ranks reach ``host``, their name for this machine; empty: all interfaces.

    A machine may know its own name as an address that only it knows while the others know it as another one.
    """
    address = resolve(host) or ""
    if address and address != host and not environment.all_local and _is_its_own(address):
        return ""
    return address


def _is_its_own(address: str) -> bool:
    """Whether nobody else finds the machine there: a loopback address, or one of IPv6 that counts on one link only."""
    found = ipaddress.ip_address(address)
    return found.is_loopback or (found.version == 6 and found.is_link_local)


def _listen(address: str, port: int) -> socket.socket:
    if address:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            return socket.create_server((address, port), family=family, backlog=_WAITING_RANKS)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:  # the others reach this machine through a translated address
                raise
    if socket.has_dualstack_ipv6():  # the others may know it by either kind of address
        with suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_WAITING_RANKS)
    return socket.create_server(("", port), backlog=_WAITING_RANKS)


def _mpi_store(environment: Environment, timeout: timedelta) -> dist.Store:
    world = mpi_world(environment)
    # The address of the store, and the prefix of its keys.
    address = np.zeros(_ADDRESS_BYTES, np.uint8)
    if environment.rank == 0:
        host = _own_host(environment)
        # Port 0 lets the kernel choose, so that no other process can take the port before the store listens.
        store = _serve(environment, host, 0, timeout)
        prefix = secrets.token_hex(16)
        text = f"{store.port} {prefix} {host}".encode()
        address[: len(text)] = np.frombuffer(text, np.uint8)
        world.Bcast(address)
        _unname_shared_memory(world)
        return dist.PrefixStore(prefix, store)
    world.Bcast(address)
    _unname_shared_memory(world)
    port, prefix, host = address.tobytes().rstrip(b"\0").decode().split(" ", 2)
    store = dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=timeout)
    return dist.PrefixStore(prefix, store)


def _unname_shared_memory(world: Any) -> None:
    """Takes the names of MPICH's shared memory away once every rank has it, so that no dead rank leaves it behind."""
    world.Barrier()
    lines = Path("/proc/self/maps").read_text(errors="replace").splitlines() if Path("/proc/self/maps").exists() else []
    for path in {line.rpartition(" ")[2] for line in lines if "/dev/shm/mpich_shm_" in line}:
        Path(path).unlink(missing_ok=True)


def meeting_host(environment: Environment) -> str:
    """The launcher's host, or an address for it where the name does not resolve: loopback, or Slurm's NodeAddr.

    Raises UserError where no address is found.
    """
    host = environment.host or "localhost"
    if resolve(host) is not None:
        return host
    if environment.all_local:
        return "127.0.0.1"
    address = node_address(host) if environment.launcher == "srun" else None
    if address is None or resolve(address) is None:
        raise UserError(
            f"the host name {host} does not resolve",
            where=f"on {socket.gethostname()}, where {environment.launcher} started rank {environment.rank}",
            mend="add it to /etc/hosts or DNS, or give its address to the launcher",
        )
    return address


def _own_host(environment: Environment) -> str:
    if environment.all_local:
        return "127.0.0.1"
    host = socket.gethostname()
    address = resolve(host)
    if address is not None and not _is_its_own(address):
        return host
    return _source_address(_OUTSIDE) or host


def resolve(host: str) -> str | None:
    """The first address of a host name, None where it has none, or is none: a part of it may have 63 characters."""
    try:
        return str(socket.getaddrinfo(host, None)[0][4][0])
    except (socket.gaierror, UnicodeError):
        return None


def choose_interface(environment: Environment, host: str) -> str | None:
    """The interface that gloo must be told to use, None where it finds a good one by itself.

    Ranks of one machine stay on its loopback interface, where no other machine hears them. Otherwise gloo binds to the
    address of this machine's own name. On many Linux systems that is a loopback address, or one of IPv6 for a single
    link, which ranks on other machines cannot reach; then the interface that leads to `host`, or out of the machine, is
    the right one.
    """
    if environment.all_local:
        return interface_of("127.0.0.1")
    own = resolve(socket.gethostname())
    if own is not None and not _is_its_own(own):
        return None
    target = resolve(host) or _OUTSIDE
    address = _source_address(_OUTSIDE if ipaddress.ip_address(target).is_loopback else target)
    return interface_of(address) if address else None


def _source_address(target: str) -> str | None:
    """The address that packets to `target` leave from; connecting a datagram socket sends nothing."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """The name of the network interface that holds an IPv4 address, None where none does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, request)
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def prepare_gloo(environment: Environment, host: str) -> None:
    """Point gloo at a network interface where it would choose an unreachable one and the user chose none."""
    interface = choose_interface(environment, host)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
