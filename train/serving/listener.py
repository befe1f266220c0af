"""The socket on which clients arrive."""

import contextlib
import ctypes
import socket
import struct
import sys

from train.errors import ConfigError

BACKLOG = 2048
SO_ATTACH_FILTER = 26  # of Linux; Python has no name for it
# A packet filter (classic BPF): load the flags of the TCP header; with SYN, which opens a connection, drop; else pass.
DROP_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


def bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet; port 0 is any free one.

    Raises:
        ConfigError: there is no such address here, or it is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError, OverflowError) as error:
        raise ConfigError(f"--host {host}: is no address: {error}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _unusable(host, port, error) from error
    return listener


def _unusable(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(f"--port {port}: cannot be used on {host}: {error.strerror}; name another, or 0 for a free one")


def address_of(listener: socket.socket) -> str:
    """`http://127.0.0.1:8000`."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(listener: socket.socket) -> None:
    """Let clients in; ConfigError if another process has taken the port since `bind`."""
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise _unusable(*listener.getsockname()[:2], error) from error


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return listener.getsockname()[0].startswith(("127.", "::1"))


def stop_accepting(listener: socket.socket) -> None:
    """From now on the port does not answer, until it is closed; who is connected, or nearly, stays so. On Linux only.

    A client is connected as soon as the kernel says so. Between the last accept and the close there is always time for
    one more, whose connection the close would reset.
    """
    with contextlib.suppress(OSError):  # a kernel without BPF
        if sys.platform == "linux":
            instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in DROP_SYN))
            program = struct.pack("HP", len(DROP_SYN), ctypes.addressof(instructions))
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
