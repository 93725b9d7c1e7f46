"""The address that the service listens on, as seen from other processes."""

from __future__ import annotations

import http.client
import ipaddress
import socket
from dataclasses import dataclass


class AddressUnavailableError(Exception):
    """Another process listens on the address, or this machine does not have it."""


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    @property
    def reachable_host(self) -> str:
        """The host a client on this machine connects to."""
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return self.host
        if not address.is_unspecified:
            return self.host
        return "127.0.0.1" if address.version == 4 else "::1"

    @property
    def url(self) -> str:
        host = self.reachable_host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def resolve(self) -> Address:
        """Check that one can listen on the address; port 0 is replaced by a free port."""
        try:
            family, kind, _, _, where = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
                return Address(self.host, probe.getsockname()[1])
        except socket.gaierror as error:
            raise AddressUnavailableError(
                f"{self.host!r} is no address of this machine: {error.strerror}. Give one by ECKART_HOST or "
                "--host, such as 127.0.0.1, or 0.0.0.0 for all"
            ) from error
        except OSError as error:
            raise AddressUnavailableError(
                f"cannot listen on {self.host}:{self.port}: {error.strerror}. Stop the process that listens "
                "there, or choose a free address by ECKART_HOST and ECKART_PORT, or --host and --port"
            ) from error

    def get(self, path: str) -> tuple[int, bytes] | None:
        """Return the status and the body of `path`, or None if there is no answer."""
        connection = http.client.HTTPConnection(self.reachable_host, self.port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
