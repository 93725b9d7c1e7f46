"""`service.middleware`: request ids, and bodies of requests that are answered before they are read."""

import socket


def test_every_answer_carries_a_request_id_the_clients_own_if_it_is_harmless(service):
    given = service.http.get("/nothing", headers={"X-Request-ID": "abc-123"})
    odd = service.http.get("/livez", headers={"X-Request-ID": "a b\tc" * 50})

    assert given.headers["x-request-id"] == "abc-123"
    assert len(odd.headers["x-request-id"]) == 16


def test_a_refused_client_that_goes_on_sending_is_cut_off(service):
    """What it sends must not be read for ever, and what it is told must arrive."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(b"PUT /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000000\r\n\r\n")
        sent = 0
        try:
            while sent < 900_000_000:
                sent += connection.send(bytes(65536))
        except OSError:
            pass
        answer = connection.recv(65536)

    assert sent < 100_000_000
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"connection: close" in answer


def test_a_refused_client_with_little_left_to_send_keeps_its_connection(service):
    request = b"PUT /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000)
    last = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    answer = service.raw(request + last)

    assert answer.count(b"HTTP/1.1 404 ") == 1
    assert answer.count(b"HTTP/1.1 200 ") == 1
