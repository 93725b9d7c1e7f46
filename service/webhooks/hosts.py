"""Where webhooks may go: the hosts that the operator allows, and only to public addresses of them.

Whoever submits a job chooses an address that this machine connects to, inside the operator's network. So the
host must be allowed by name, and every address that the name has must be public, or be allowed itself.
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# Returns the addresses of a host, for a connection to a port; an OSError if there are none.
Resolve = Callable[[str, int], Sequence[str]]

PORTS = {"https": 443, "http": 80}
ENTRY = re.compile(
    r"(?:(?P<scheme>https?)://)?(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<host>(?:\*\.)?[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?))"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
# What httpx leaves of a host: a name, or an address without brackets.
HOST = re.compile(r"[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?|[0-9a-f:.]+")
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class WebhookRefused(Exception):  # noqa: N818 - it says what happened
    """A webhook may not go to this address; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """An address, taken apart once: what is checked is what is connected to."""

    scheme: str
    host: str
    port: int
    path: bytes

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class _Entry:
    scheme: str
    host: str
    port: int

    def allows(self, target: Target) -> bool:
        if (self.scheme, self.port) != (target.scheme, target.port):
            return False
        if self.host.startswith("*."):
            return target.host.endswith(self.host[1:]) and _address(target.host) is None
        return target.host == self.host


def system_resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system, which may ask the network."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


class WebhookHosts:
    """The allowed hosts, by the setting."""

    def __init__(self, setting: str, resolve: Resolve = system_resolve) -> None:
        """Parse the setting; a ValueError says what is wrong with it."""
        self._resolve = resolve
        self._entries: list[_Entry] = []
        self._networks: list[Network] = []
        for entry in filter(None, (each.strip().lower() for each in setting.split(","))):
            self._add(entry)
        if self._networks and not self._entries:
            raise ValueError("it names networks only; name the hosts too that webhooks may go to")

    def __bool__(self) -> bool:
        return bool(self._entries)

    def _add(self, entry: str) -> None:
        if network := _network(entry):
            self._networks.append(network)
            return
        found = ENTRY.fullmatch(entry)
        if found is None or int(found["port"] or 1) not in range(1, 65536):
            raise ValueError(
                f"{entry!r} is no host; write hooks.example.com, *.example.com, host:8443 or "
                "http://host:8080, and 10.1.0.0/16 for private addresses that these hosts may have"
            )
        scheme, host = found["scheme"] or "https", found["ipv6"] or found["host"]
        address = _address(host)
        if found["ipv6"] and address is None:
            raise ValueError(f"{entry!r} has no IPv6 address in its brackets")
        if address is not None:
            # Whoever writes an address means it, be it private or not.
            self._networks.append(ipaddress.ip_network(_unwrapped(address)))
            host = str(address)
        self._entries.append(_Entry(scheme, host, int(found["port"] or PORTS[scheme])))

    def target(self, url: str) -> Target:
        """Return where the URL leads, or raise `WebhookRefused` if that host is not allowed."""
        if not self:
            raise WebhookRefused(
                "This service sends no webhooks. Leave `webhook` out and ask for the job, or have the "
                "operator set ECKART_WEBHOOK_HOSTS and ECKART_WEBHOOK_SECRET."
            )
        target = _parsed(url)
        if not any(entry.allows(target) for entry in self._entries):
            raise WebhookRefused(
                f"Webhooks may not go to {target.origin}. Use a host that the operator allows, or have it "
                "added to ECKART_WEBHOOK_HOSTS; https and its usual port are meant unless an entry says "
                "otherwise."
            )
        return target

    def addresses(self, target: Target) -> Sequence[str]:
        """Return the addresses to connect to, all of them checked; an OSError if there are none."""
        address = _address(target.host)
        found = [target.host] if address else self._resolve(target.host, target.port)
        if not found:
            raise OSError("no addresses")
        for each in found:
            if not self._may_connect(each):
                raise WebhookRefused(
                    f"{target.host} has an address that is not public. The operator can allow it by adding "
                    "the address, or its network as in 10.1.0.0/16, to ECKART_WEBHOOK_HOSTS."
                )
        return found

    def require(self, url: str) -> None:
        """Refuse what could never be delivered; a name that has no address yet may get one."""
        target = self.target(url)
        try:
            self.addresses(target)
        except OSError:
            return

    def _may_connect(self, text: str) -> bool:
        address = _address(text)
        if address is None:
            return False
        real = _unwrapped(address)
        return is_public(real) or any(real in network for network in self._networks)


def is_public(address: Address) -> bool:
    """Whether an address is one of the Internet; tunnels may lead anywhere and count as private."""
    if isinstance(address, ipaddress.IPv6Address) and (
        address.sixtofour or address.teredo or address.is_site_local
    ):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address in NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _parsed(url: str) -> Target:
    try:
        parsed = httpx.URL(url)
        host = parsed.raw_host.decode("ascii").lower()
        port = parsed.port or PORTS.get(parsed.scheme, 0)
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise WebhookRefused("This is no URL; write one such as https://hooks.example.com/eckart.") from None
    if host and HOST.fullmatch(host) is None:
        raise WebhookRefused(
            "The URL has no host name or address; write one such as https://hooks.example.com."
        )
    if parsed.scheme not in PORTS or not host:
        raise WebhookRefused("A webhook needs an absolute https:// or http:// URL.")
    if parsed.userinfo:
        raise WebhookRefused(
            "Leave user name and password out of the URL; the receiver knows the message by its signature."
        )
    host = str(_address(host) or host)
    return Target(parsed.scheme, host, port, parsed.raw_path)


def netloc_of(url: str) -> str:
    """Return the host and port that a URL names, allowed or not."""
    try:
        return httpx.URL(url).netloc.decode()
    except (httpx.InvalidURL, UnicodeError, ValueError):
        return ""


def shown(url: str) -> str:
    """Return a URL without what may be secret in it."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError, ValueError):
        return ""
    return f"{parsed.scheme}://{parsed.netloc.decode()}{parsed.path}"


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text) if "/" in text else None
    except ValueError:
        return None
