"""`service.standalone.address`: a taken address is refused, and the URL is one that a client can open."""

import socket

import pytest

from service.standalone.address import Address, AddressUnavailableError


def test_an_address_where_somebody_listens_is_refused_with_the_way_out():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressUnavailableError, match=f"127.0.0.1:{port}.*ECKART_PORT"):
            Address("127.0.0.1", port).resolve()


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(AddressUnavailableError, match="ECKART_HOST"):
        Address("192.0.2.1", 0).resolve()


def test_port_zero_becomes_a_free_port():
    resolved = Address("127.0.0.1", 0).resolve()
    assert resolved.port != 0
    assert resolved.resolve() == resolved


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("fe80::1", "http://[fe80::1]:80"),
        ("localhost", "http://localhost:80"),
    ],
)
def test_the_url_is_one_that_a_client_on_this_machine_can_open(host, url):
    assert Address(host, 80).url == url


def test_an_address_where_nobody_listens_does_not_answer():
    assert Address("127.0.0.1", 0).resolve().get("/readyz") is None
