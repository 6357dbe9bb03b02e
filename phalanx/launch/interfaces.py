"""Which network interface has an address: gloo is told interfaces, whoever starts a group knows addresses. Linux only."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct

from ..errors import PlatformError

_SIOCGIFADDR = 0x8915


def interface_of(address: str) -> str:
    """Return the name of the network interface of this machine that has an IPv4 address.

    Raises:
        PlatformError: none has it.
    """
    address = address.removeprefix("::ffff:")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    raise PlatformError(f"no network interface of this machine has the address {address}: set GLOO_SOCKET_IFNAME to its name")
