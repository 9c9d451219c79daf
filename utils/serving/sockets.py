"""The port that a server listens on, taken before the model is loaded."""

import socket

from utils import distributed
from utils.evaluation.settings import Address
from utils.settings import InputError

BACKLOG = 2048  # connections that wait to be accepted


def reserve(address: Address) -> socket.socket:
    """Take a port, on which nobody listens yet; the processes of a launcher share it.

    Raises:
        InputError: somebody else has it, it cannot be had, or the platform shares none.
    """
    shared = distributed.world_size() > 1
    if shared and not hasattr(socket, "SO_REUSEPORT"):
        raise InputError("this platform shares no port between processes: start one with python")
    if not shared:
        return _bind(address)

    # What is in use shows only to a socket that does not share.
    problem, port = "", address.port
    if distributed.is_main():
        try:
            with _bind(address) as probe:
                port = probe.getsockname()[1]
        except InputError as error:
            problem = str(error)

    problem, port = distributed.from_main((problem, port))
    if problem:
        raise InputError(problem)
    return _bind(Address(address.host, port), shared=True)


def listen(listener: socket.socket) -> None:
    """Let clients connect, who then wait until they are answered; InputError if the port is lost.

    Two sockets may be bound to a port, but only one of them may listen.
    """
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise _cannot_have(Address(*listener.getsockname()[:2]), error) from error


def _bind(address: Address, shared: bool = False) -> socket.socket:
    listener = None
    try:
        (family, kind, _, _, place), *_ = socket.getaddrinfo(
            *address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(place)
    except OSError as error:
        if listener:
            listener.close()
        raise _cannot_have(address, error) from error
    return listener


def _cannot_have(address: Address, error: OSError) -> InputError:
    host, port = address
    return InputError(
        f"port {port} of {host} cannot be had ({error.strerror}): give another [HOST:]PORT to "
        "--serve, or 0 for a free port"
    )
