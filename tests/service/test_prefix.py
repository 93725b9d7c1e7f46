"""The API below a path of a proxy: its addresses lead back through the proxy, and to no other host."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import ValidationError

from eckart import Client
from service.settings import Settings
from tests.service.files import FILES, MODEL
from tests.service.running import SPEC, RunningService, assert_problem

HOP_BY_HOP = {"host", "connection", "transfer-encoding", "content-length"}


@contextmanager
def proxy(service, *, headers, strips=True):
    """Serve the service under /eckart, as nginx and Traefik do; return the address of the prefix."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self):
            if not self.path.startswith("/eckart/"):
                self.answer(404, {}, b"no such site")
                return
            path = self.path.removeprefix("/eckart") if strips else self.path
            given = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found = service.http.request(self.command, path, headers={**given, **headers}, content=body)
            self.answer(found.status_code, found.headers, found.content)

        def answer(self, status, found, body):
            self.send_response(status)
            for name, value in found.items():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    for method in ("GET", "POST", "PUT"):
        setattr(Proxy, f"do_{method}", Proxy.forward)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/eckart"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


BY_SETTING = ({"root_path": "/eckart"}, {}, True)
BY_HEADER = ({}, {"X-Forwarded-Prefix": "/eckart"}, True)
UNSTRIPPED = ({"root_path": "/eckart/"}, {}, False)


@pytest.fixture(
    scope="module",
    params=[BY_SETTING, BY_HEADER, UNSTRIPPED],
    ids=["setting", "header", "path not stripped"],
)
def behind(request, _redis_server, tmp_path_factory):
    """Return a service and its address behind a proxy that serves it under /eckart."""
    settings, headers, strips = request.param
    if not _redis_server.running:
        _redis_server.start()
    url = f"{_redis_server.url}?virtual_host=2"
    with (
        RunningService(
            tmp_path_factory.mktemp("data"), redis_url=url, min_free_bytes=0, **settings
        ) as service,
        proxy(service, headers=headers, strips=strips) as url,
    ):
        yield service, url


def test_every_address_in_an_answer_leads_back_through_the_proxy(behind):
    service, url = behind
    host = url.removesuffix("/eckart")
    stored = service.stored(MODEL)

    made = service.http.post(f"{url}/v1/jobs", json={"checkpoint": stored, "spec": SPEC})
    job = made.json()
    service.finish(job["id"], FILES)

    assert made.status_code == 202
    assert made.headers["location"] == job["links"]["self"] == f"/eckart/v1/jobs/{job['id']}"
    assert service.http.get(host + job["links"]["self"]).json()["links"] == job["links"]
    assert service.http.get(f"{url}/v1/jobs").json()["jobs"][0]["links"] == job["links"]
    assert service.http.get(host + job["links"]["report"]).status_code == 200
    assert service.http.get(host + job["links"]["checkpoint"]).content == MODEL
    assert (
        service.http.get(host + job["links"]["files"].format(filename="model.safetensors")).content == MODEL
    )
    assert service.http.post(host + job["links"]["cancel"]).json()["links"] == job["links"]


def test_the_documentation_asks_for_its_schema_below_the_prefix(behind):
    service, url = behind

    page = service.http.get(f"{url}/docs").text

    assert 'data-openapi="/eckart/openapi.json"' in page
    assert service.http.get(f"{url}/openapi.json").json()["servers"] == [{"url": "/eckart"}]


def test_the_client_works_below_a_prefix(behind, tmp_path):
    service, url = behind
    (tmp_path / "model.safetensors").write_bytes(MODEL)

    with Client(url) as client:
        job = client.compress(tmp_path / "model.safetensors", SPEC, wait=False)
        service.finish(job.id, FILES)
        client.wait(job.id)
        paths = client.download(job.id, tmp_path / "result")

    assert [path.name for path in paths] == ["model.safetensors", "report.json"]


def test_problems_name_addresses_below_the_prefix(behind):
    service, url = behind
    job = service.submit(service.stored(MODEL)).json()["id"]
    service.http.post(f"/v1/jobs/{job}/cancel")

    gone = assert_problem(service.http.get(f"{url}/v1/jobs/{job}/checkpoint"), 410, "ended-without-result")
    slash = service.http.put(f"{url}/v1/checkpoints/my-model", content=MODEL)

    assert f"/eckart/v1/jobs/{job} " in gone["detail"]
    assert "slash" in assert_problem(slash, 405, "method-not-allowed")["detail"]
    assert "GET" in slash.headers["allow"]


@pytest.mark.parametrize(
    "prefix",
    [
        "//evil.example",
        "https://evil.example",
        "evil",
        "/a//b",
        "/../a",
        "/a/..",
        "/./a",
        "/a b",
        "/a'</script><script>alert(1)</script>",
        '/a"b',
        "/a?b=c",
        "/a#b",
        "/a%0d%0ab",
        "/a\\b",
        "/a;b",
        "/a, /b",
        "/" + "a" * 300,
        "/é",
        "",
        "/",
    ],
)
def test_a_header_that_is_no_harmless_path_changes_nothing(service, prefix):
    headers = {"X-Forwarded-Prefix": prefix.encode()}
    made = service.http.post(
        "/v1/jobs", json={"checkpoint": service.stored(MODEL), "spec": SPEC}, headers=headers
    )

    assert made.headers["location"] == f"/v1/jobs/{made.json()['id']}"
    assert 'data-openapi="/openapi.json"' in service.http.get("/docs", headers=headers).text
    assert "servers" not in service.http.get("/openapi.json", headers=headers).json()


def test_a_header_of_one_request_changes_no_other(service):
    with_header = service.http.get("/openapi.json", headers={"X-Forwarded-Prefix": "/first"})
    without = service.http.get("/openapi.json")

    assert with_header.json()["servers"] == [{"url": "/first"}]
    assert "servers" not in without.json()


def test_a_prefix_that_looks_like_an_address_of_ours_is_only_a_prefix(service):
    answer = service.http.get("/v1/jobs", headers={"X-Forwarded-Prefix": "/v1"})

    assert answer.status_code == 200


def test_the_setting_wins_over_the_header(start):
    service = start(root_path="/ours")

    document = service.http.get("/openapi.json", headers={"X-Forwarded-Prefix": "/theirs"}).json()

    assert document["servers"] == [{"url": "/ours"}]


@pytest.mark.parametrize(
    "path", ["eckart", "//evil.example", "/a b", "/..", "https://evil.example/a", "/a\n"]
)
def test_a_setting_that_is_no_path_is_refused(path):
    with pytest.raises(ValidationError, match="not a path such as /eckart"):
        Settings(root_path=path)


@pytest.mark.parametrize(("given", "used"), [("", ""), ("/", ""), ("/eckart", "/eckart"), ("/a/b/", "/a/b")])
def test_a_setting_needs_no_slash_at_its_end(given, used):
    assert Settings(root_path=given).root_path == used
