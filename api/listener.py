"""Where connections arrive: one listening socket for each process that takes them, all at the address of the settings.

On Linux each process has a socket of its own (SO_REUSEPORT) and the kernel spreads connections over them; a socket that
several processes wait at gives most of a burst to the one that wakes first (docs/decisions/0023-several-server-processes.md
has the figures). Elsewhere SO_REUSEPORT does not spread, and the processes wait at one socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Final

from featurestore.access.keys import has_keys
from featurestore.errors import SettingsInvalid, StoreUnavailable
from featurestore.settings import Settings

BACKLOG: Final = 2048
"""Connections that may wait to be accepted: uvicorn's own default."""

LINUX: Final = sys.platform == "linux"

_SO_ATTACH_FILTER: Final = 26
_SO_ATTACH_REUSEPORT_CBPF: Final = 51
"""Both from socket(7) and `include/uapi/asm-generic/socket.h`."""

Instruction = tuple[int, int, int, int]
"""Of classic BPF (`include/uapi/linux/filter.h`): code, jump if true, jump if false, constant."""

_LOAD_BYTE, _LOAD_WORD, _AND, _MODULO, _JUMP_EQUAL, _RETURN = 0x30, 0x20, 0x54, 0x94, 0x15, 0x06
_RANDOM: Final = 0xFFFFF038
"""Where a load finds a random number: SKF_AD_OFF + SKF_AD_RANDOM."""
_FLAGS_BYTE, _SYN, _SYN_ACK = 13, 0x02, 0x12
"""Of a TCP header: where its flags are, and which of them tell the first packet of a connection."""

_WITHOUT_FIRST_PACKETS: Final = (
    (_LOAD_BYTE, 0, 0, _FLAGS_BYTE),
    (_AND, 0, 0, _SYN_ACK),
    (_JUMP_EQUAL, 0, 1, _SYN),
    (_RETURN, 0, 0, 0),
    (_RETURN, 0, 0, 0xFFFFFFFF),
)


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[list[socket.socket]]:
    """`settings.workers` sockets that listen at the address of the settings; the same one each time where it is shared. They
    are closed at the end.

    Raises:
        SettingsInvalid: the address is not loopback and the store has no keys: nobody would be asked who they are.
        StoreUnavailable: the address can't be listened on, or it can't be found out whether there are keys.
    """
    if not is_loopback(settings.host) and not has_keys(settings):
        expected = "a loopback address, as the store has no access keys yet (see `featurestore keys create`)"
        raise SettingsInvalid.one("FEATURESTORE_HOST", expected, settings.host)
    with contextlib.ExitStack() as opened:
        try:
            first = opened.enter_context(_bound(settings.host, settings.port))
            first.listen(BACKLOG)  # an address that others only bind is found taken here
            listeners = [first]
            if LINUX and settings.workers > 1:
                # The first was bound alone, so that the address of another service is found taken; now others may join it.
                first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                for _ in range(1, settings.workers):
                    other = opened.enter_context(_bound(settings.host, first.getsockname()[1], beside=True))
                    other.listen(BACKLOG)
                    listeners.append(other)
        except (OSError, UnicodeError) as error:
            hint = "try --port 0" if getattr(error, "errno", None) == errno.EADDRINUSE else "see FEATURESTORE_HOST"
            raise StoreUnavailable("listen", f"{settings.host}:{settings.port}: {error}", hint=hint) from error
        yield listeners if LINUX else listeners * settings.workers


def refuse_connections(listener: socket.socket) -> None:
    """Let nobody begin a connection any more, so that what waits to be accepted comes to an end and closing resets nobody.

    Whoever tries meanwhile is refused once the socket is closed. Only on Linux; elsewhere, connections that arrive at the
    very moment of closing are reset.
    """
    if LINUX:
        _attach(listener, _SO_ATTACH_FILTER, _WITHOUT_FIRST_PACKETS)


def spread_connections(listeners: Sequence[socket.socket], chosen: Sequence[int]) -> None:
    """Give new connections to some of the sockets only, by their places in `listeners`, each its share at random.

    Args:
        listeners: as `listening` gave them, all open.
        chosen: at least one.
    """
    if LINUX and len(listeners) > 1:  # the kernel counts them in the order in which they began to listen
        cases: list[Instruction] = []
        for place, index in enumerate(chosen):
            cases += [(_JUMP_EQUAL, 0, 1, place), (_RETURN, 0, 0, index)]
        program = ((_LOAD_WORD, 0, 0, _RANDOM), (_MODULO, 0, 0, len(chosen)), *cases, (_RETURN, 0, 0, chosen[0]))
        _attach(listeners[0], _SO_ATTACH_REUSEPORT_CBPF, program)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bound(host: str, port: int, *, beside: bool = False) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if beside:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((host, port))
    except BaseException:
        made.close()
        raise
    return made


def _attach(listener: socket.socket, option: int, program: Sequence[Instruction]) -> None:
    """Set a program of the kernel's socket filter (`struct sock_fprog`).

    A kernel that has no such programs (gVisor's) goes on as it would elsewhere than on Linux.
    """
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, option, struct.pack("HP", len(program), ctypes.addressof(code)))
