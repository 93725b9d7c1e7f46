"""`access.browsers`: foreign names and foreign pages are refused, and answers say what browsers may do."""

import socket

import httpx
import pytest

from service.access.browsers import DATA_POLICY, AllowedHosts, host_of
from service.settings import Settings
from tests.service.files import checkpoint_bytes
from tests.service.running import assert_problem

MODEL = checkpoint_bytes()
KEY = "a-key-of-these-tests"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "x@127.0.0.1", "10.9.8.7"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_host_that_is_not_the_services_is_refused(service, host, method):
    answer = service.http.request(method, "/v1/jobs/J1", headers={"Host": host})
    assert_problem(answer, 421, "foreign-host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:8000", "localhost."])
def test_the_names_of_this_machine_are_answered(service, host):
    assert service.http.get("/v1/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes_are_answered_under_any_name(service, path):
    assert service.http.get(path, headers={"Host": "pod-7"}).status_code in {200, 503}


def test_named_hosts_are_answered_beside_the_others(start):
    service = start(allowed_hosts="models.example, 192.0.2.7")
    for host in ("models.example", "Models.Example:443", "192.0.2.7", "localhost"):
        assert service.http.get("/v1/jobs", headers={"Host": host}).status_code == 200
    assert_problem(service.http.get("/v1/jobs", headers={"Host": "other.example"}), 421, "foreign-host")


def test_a_star_allows_any_host(start):
    service = start(allowed_hosts="*")
    assert service.http.get("/v1/jobs", headers={"Host": "anything.example"}).status_code == 200


@pytest.mark.parametrize("wrong", ["http://models.example", "models.example:80", "a b", "models.example/x"])
def test_what_is_no_host_is_refused_as_a_setting(wrong):
    with pytest.raises(ValueError, match="without scheme, port and path"):
        Settings(allowed_hosts=wrong)


@pytest.mark.parametrize("bound", ["0.0.0.0", "::"])
def test_a_service_on_all_addresses_is_answered_under_any_address_but_no_other_name(bound):
    hosts = AllowedHosts(bound, ())
    assert all(host in hosts for host in ("192.0.2.7", "2001:db8::1", "localhost"))
    assert "evil.example" not in hosts
    assert None not in hosts


def test_a_bound_name_is_answered():
    assert "models.example" in AllowedHosts("Models.Example", ())
    assert "192.0.2.7" not in AllowedHosts("192.0.2.6", ())


@pytest.mark.parametrize("field", ["", "a:b", "a/b", "a?b", "[::1", "u@a", "a:99999999"])
def test_a_malformed_host_is_none(field):
    assert host_of(field) is None


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\n",
        b"GET /livez HTTP/1.1\r\nHost:\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n",
    ],
)
def test_a_request_without_one_host_is_malformed(service, head):
    answer = service.raw(head + b"Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"urn:eckart:problem:invalid-http" in answer


def test_http_1_0_needs_no_host(service):
    assert service.raw(b"GET /livez HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


FOREIGN_PAGES = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "http://evil.example"},
    {"Origin": "http://127.0.0.1:3000.evil.example"},
    {"Origin": "http://127.0.0.1:3000"},
    {"Origin": "http://[evil"},
    {"Origin": "null"},
]


@pytest.mark.parametrize("headers", FOREIGN_PAGES)
def test_a_page_of_another_site_can_change_nothing(service, headers):
    stored = service.stored(MODEL)
    calls = [
        ("POST", "/v1/jobs"),
        ("DELETE", f"/v1/checkpoints/{stored}"),
        ("PUT", "/v1/checkpoints/new/m.safetensors"),
    ]
    for method, path in calls:
        assert_problem(service.http.request(method, path, headers=headers, content=b"x"), 403, "cross-site")
    assert service.http.get(f"/v1/checkpoints/{stored}", headers=headers).status_code == 200


def test_a_form_of_another_site_is_refused_before_its_body_is_read(service):
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\nExpect: 100-continue\r\n"
            b"Content-Length: 1000000\r\n\r\n"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "same-origin", "Origin": "https://by.proxy"}, {"Sec-Fetch-Site": "none"}, {}],
)
def test_the_services_own_pages_and_programs_can(service, headers):
    assert service.http.delete("/v1/checkpoints/none", headers=headers).status_code == 404


def test_an_old_browser_on_the_services_own_page_can(service):
    own = {"Origin": service.url}
    assert service.http.delete("/v1/checkpoints/none", headers=own).status_code == 404


def test_the_page_of_a_named_host_can_behind_a_proxy(start):
    service = start(allowed_hosts="models.example")
    for origin, status in (("https://models.example", 404), ("https://evil.example", 403)):
        answer = service.http.delete("/v1/checkpoints/none", headers={"Origin": origin})
        assert answer.status_code == status


@pytest.mark.parametrize("headers", FOREIGN_PAGES)
def test_a_page_of_another_site_can_change_nothing_with_a_key_either(start, headers):
    service = start(api_keys=f"alice:{KEY}")
    answer = service.http.delete("/v1/checkpoints/none", headers={"X-API-Key": KEY, **headers})
    assert_problem(answer, 403, "cross-site")


@pytest.mark.parametrize(
    ("allowed", "host", "origin", "status"),
    [
        ("", "models.example", "https://models.example", 404),
        ("", "127.0.0.1", "https://models.example", 403),
        ("models.example", "127.0.0.1", "https://models.example", 404),
        ("models.example", "models.example", "https://evil.example", 403),
        ("models.example", "other.example", "https://other.example", 421),
        ("*", "127.0.0.1", "https://models.example", 404),
    ],
)
def test_with_keys_any_host_is_answered_and_pages_are_its_own_or_named(start, allowed, host, origin, status):
    service = start(api_keys=f"alice:{KEY}", allowed_hosts=allowed)
    headers = {"X-API-Key": KEY, "Host": host, "Origin": origin}
    assert service.http.delete("/v1/checkpoints/none", headers=headers).status_code == status


def test_every_answer_carries_the_security_headers(service):
    answers = [
        service.http.get(path) for path in ("/livez", "/v1/jobs", "/nothing", "/metrics", "/openapi.json")
    ]
    answers.append(service.http.get("/v1/jobs", headers={"Host": "evil.example"}))
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["content-security-policy"] == DATA_POLICY


def test_an_answer_to_an_unexpected_error_carries_them_too(service):
    stored = service.stored(MODEL)
    manifest = service.data_dir / "checkpoints" / stored / ".manifest.json"
    manifest.unlink()
    manifest.mkdir()
    answer = httpx.get(f"{service.url}/v1/checkpoints/{stored}")
    assert answer.status_code == 500
    assert answer.headers["content-security-policy"] == DATA_POLICY
    manifest.rmdir()
