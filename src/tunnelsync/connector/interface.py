"""The connector's default MAC address: that of the interface which reaches the router."""

import array
import asyncio
import socket
import struct
import sys
from pathlib import Path

from yarl import URL

from tunnelsync.errors import BadMac, BadSetting
from tunnelsync.identity import Mac, is_stable, mac_address

SIOCGIFCONF = 0x8912
IFREQ = struct.Struct("16s4x4s16x")  # name, then sockaddr_in: family, port, IPv4 address
INTERFACES = 1024
ASK = "Give this connector's MAC address with --mac (any one that no other connector has)."


async def default_mac(router: URL) -> Mac:
    """Return the MAC of the interface whose address a packet to the router would carry.

    Raises `BadSetting` that asks for ``--mac`` where there is none, or none that a maker gave:
    one made up by a container or for privacy is another one tomorrow.
    """
    name = _interface(await _local_address(router))
    mac = _mac_of(name)
    if not is_stable(mac):
        raise _none(f"interface {name} reaches the router, and {mac} is not a maker's address")
    return mac


def _mac_of(name: str) -> Mac:
    try:
        return mac_address(Path(f"/sys/class/net/{name}/address").read_text().strip())
    except (OSError, BadMac):
        raise _none(f"interface {name} has no MAC address") from None


async def _local_address(router: URL) -> str:
    """Return our address towards the router; connecting UDP sends nothing."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(router.host or "", router.port or 0, type=socket.SOCK_DGRAM)
        family, kind, proto, _, address = found[0]
        with socket.socket(family, kind, proto) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as exc:
        raise _none(f"no interface reaches {router.host} now ({exc.strerror})") from None


def _interface(address: str) -> str:
    """Return the name of the interface that has this address."""
    if sys.platform != "linux":
        raise _none("this system does not tell which interface reaches the router")
    try:
        found = _names_6().get(address) if ":" in address else _names_4().get(address)
    except OSError as exc:
        raise _none(f"the interfaces cannot be listed ({exc.strerror})") from None
    if found is None:
        raise _none(f"no interface has the address {address}")
    return found


def _names_4() -> dict[str, str]:
    """Return the interfaces by IPv4 address, further addresses of one included."""
    import fcntl

    buffer = array.array("B", bytes(INTERFACES * IFREQ.size))
    at, length = buffer.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, SIOCGIFCONF, struct.pack("iL", length, at))
    filled = struct.unpack("iL", answer)[0]
    found = IFREQ.iter_unpack(buffer.tobytes()[: filled - filled % IFREQ.size])
    return {socket.inet_ntoa(ip): _plain(name) for name, ip in found}


def _plain(name: bytes) -> str:
    return name.split(b"\0")[0].split(b":")[0].decode(errors="replace")


def _names_6() -> dict[str, str]:
    rows = map(str.split, Path("/proc/net/if_inet6").read_text().splitlines())
    return {socket.inet_ntop(socket.AF_INET6, bytes.fromhex(row[0])): row[-1] for row in rows}


def _none(why: str) -> BadSetting:
    return BadSetting(f"no default for the connector's MAC: {why}", hint=ASK)
