"""The address that the ingress listens on, looked at before anything slow is started."""

import errno
import socket

import psutil

from shared.config import SettingsError, StartError


class AddressError(StartError):
    """A port that cannot be had; the message says what to do."""


def refuse_address(host: str, port: int) -> None:
    """Raises `SettingsError` if the host is none of ours, `AddressError` if the port is not free.

    The latter says who holds the port, where the system tells.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        socket.create_server(address, family=family).close()
    except (socket.gaierror, UnicodeError):
        raise _no_host(host, "is no host name or address that is known here") from None
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise _no_host(host, "is no address of this machine") from None
        raise AddressError(_no_port(host, port, error)) from None


def _no_host(host: str, why: str) -> SettingsError:
    return SettingsError(
        f"HOST={host} {why}. Set it to 127.0.0.1 to be reached from this machine alone, "
        "to 0.0.0.0 to be reached from others."
    )


def _no_port(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Cannot listen on {host}:{port}: {error.strerror}{_holder(port)}. "
            f"Stop what listens there, or choose another port: PORT={port + 1}"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"Cannot listen on {host}:{port}: {error.strerror}. Ports below 1024 are often for "
            "root alone; choose another port: PORT=8080"
        )
    return f"Cannot listen on {host}:{port}: {error.strerror}. Set HOST and PORT."


def _holder(port: int) -> str:
    """Who listens on the port; systems that tell only root leave the sentence as it is."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr[1] == port and connection.pid:
                return f" (process {connection.pid}, {psutil.Process(connection.pid).name()})"
    except psutil.Error:
        return ""
    return ""
