"""`access.links`: a signed address opens one result for whoever has it, for a while, and nothing else."""

import stat
import time

import pytest

from service.access.keys import KeyRing
from service.access.links import LIFE_S, LinkSigner
from state.data_dir import DataDir
from state.link_secret import link_secret
from tests.service.files import FILES, checkpoint_bytes
from tests.service.running import SPEC, assert_problem

MODEL = checkpoint_bytes()
KEYS = "alice:the-secret-of-alice\nbob:the-secret-of-bob12\n"
ALICE, BOB = ({"X-API-Key": secret} for secret in ("the-secret-of-alice", "the-secret-of-bob12"))
NAME = next(iter(FILES))


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(KEYS)
    return path


@pytest.fixture
def service(start, keys):
    return start(api_keys=f"@{keys}")


def made(service, owner=ALICE):
    """Return the address of a job of this owner, with its result."""
    upload = service.http.put("/v1/checkpoints/m/model.safetensors", content=MODEL, headers=owner)
    assert upload.status_code in {200, 201}
    job = service.http.post("/v1/jobs", json={"checkpoint": "m", "spec": SPEC}, headers=owner).json()["id"]
    service.finish(job, FILES)
    return f"/v1/jobs/{job}"


def link(service, job, to="archive", owner=ALICE):
    answer = service.http.post(f"{job}/links", params={"to": to}, headers=owner)
    assert answer.status_code == 201, answer.text
    return answer.json()


@pytest.mark.parametrize("to", ["archive", "report", "report?format=html", f"files/{NAME}"])
def test_a_link_gives_what_a_key_gives(service, to):
    job = made(service)
    given = link(service, job, to)
    with_key = service.http.get(f"{job}/{to}", headers=ALICE)

    assert given["href"].startswith(f"{job}/{to}")
    assert given["expires_at"] is not None
    assert service.http.get(given["href"]).content == with_key.content
    assert service.http.head(given["href"]).headers["etag"] == with_key.headers["etag"]
    part = service.http.get(given["href"], headers={"Range": "bytes=0-3"})
    if "html" not in to:
        assert (part.status_code, part.content) == (206, with_key.content[:4])


def altered(service, job):
    """Name each way to make more of a link than it is, with the request that tries it."""
    other = made(service)
    signed = link(service, job)["href"]
    path, _, query = signed.partition("?")
    expires, _, mac = query.removeprefix("link=").partition(".")
    file = link(service, job, f"files/{NAME}")["href"]
    return {
        "another file": ("GET", file.replace(f"files/{NAME}", "files/report.json")),
        "another address": ("GET", signed.replace("/archive", "/checkpoint")),
        "the job": ("GET", f"{job}?{query}"),
        "another job": ("GET", signed.replace(job, other)),
        "all jobs": ("GET", f"/v1/jobs?{query}"),
        "a path that leads there": ("GET", f"/v1/jobs/../jobs/{job.rpartition('/')[2]}/report?{query}"),
        "deleted": ("DELETE", f"{job}?{query}"),
        "canceled": ("POST", f"{job}/cancel?{query}"),
        "another link made": ("POST", f"{job}/links?{query}"),
        "a query before": ("GET", f"{path}?wait=50&{query}"),
        "a query behind": ("GET", f"{signed}&wait=50"),
        "a later end": ("GET", f"{path}?link={int(expires) + 9}.{mac}"),
        "no end": ("GET", f"{path}?link=.{mac}"),
        "a shorter signature": ("GET", signed[:-1]),
        "another signature": ("GET", signed[:-1] + ("0" if signed[-1] != "0" else "1")),
        "capitals": ("GET", f"{path}?link={expires}.{mac.upper()}"),
        "no signature": ("GET", f"{path}?link={expires}."),
        "nothing": ("GET", f"{path}?link="),
        "other digits": ("GET", f"{path}?link={expires.replace('1', '%D9%A1')}.{mac}"),
        "twice": ("GET", f"{path}?link=1.{mac}&{query}"),
        "the format of a page": ("GET", link(service, job, "report")["href"].replace("?", "?format=html&")),
    }


def test_an_altered_link_opens_nothing(service):
    job = made(service)
    for what, (method, address) in altered(service, job).items():
        answer = service.http.request(method, address)
        assert answer.status_code == 401, what
    assert service.http.get(job, headers=ALICE).status_code == 200


def test_a_foreign_owner_gets_no_link_and_makes_none_of_one(service, keys):
    job = made(service)
    signed = link(service, job)["href"]
    assert_problem(service.http.post(f"{job}/links", headers=BOB), 404, "job-not-found")
    assert_problem(service.http.get(signed, headers=BOB), 404, "job-not-found")
    assert_problem(service.http.get(signed, headers={"X-API-Key": "wrong"}), 401, "unauthorized")

    links = LinkSigner(lambda: link_secret(DataDir(service.data_dir)))
    bob = KeyRing(f"@{keys}").find(BOB["X-API-Key"])
    forged, _ = links.signed(bob, f"{job}/archive")
    assert_problem(service.http.get(forged), 404, "job-not-found")
    guessed, _ = LinkSigner(lambda: bytes(32)).signed(bob, f"{job}/archive")
    assert_problem(service.http.get(guessed), 401, "unauthorized")


def test_a_link_ends_with_its_time(service, keys):
    job = made(service)
    links = LinkSigner(lambda: link_secret(DataDir(service.data_dir)))
    alice = KeyRing(f"@{keys}").find(ALICE["X-API-Key"])
    open_still, _ = links.signed(alice, f"{job}/archive", now_s=time.time() - LIFE_S + 60)
    expired, _ = links.signed(alice, f"{job}/archive", now_s=time.time() - LIFE_S - 2)

    assert service.http.get(open_still).status_code == 200
    assert_problem(service.http.get(expired), 401, "unauthorized")


@pytest.mark.parametrize(
    "now", ["bob:the-secret-of-bob12", "alice:another-secret-of-alice\nbob:the-secret-of-bob12"]
)
def test_a_link_ends_with_its_key(service, keys, now):
    signed = link(service, made(service))["href"]
    assert service.http.get(signed).status_code == 200
    keys.write_text(now)

    assert_problem(service.http.get(signed), 401, "unauthorized")


def test_processes_share_a_secret_that_others_cannot_read(start, keys):
    first, second = start(api_keys=f"@{keys}"), start(api_keys=f"@{keys}")
    signed = link(first, made(first))["href"]
    path = DataDir(first.data_dir).link_secret

    assert second.http.get(signed).status_code == 200
    assert (stat.S_IMODE(path.stat().st_mode), len(path.read_bytes())) == (0o600, 32)


def test_below_a_prefix_a_link_leads_back_through_the_proxy(start, keys):
    service = start(api_keys=f"@{keys}", root_path="/eckart")
    signed = link(service, made(service))["href"]

    assert signed.startswith("/eckart/v1/jobs/")
    assert service.http.get(signed).status_code == 200
    assert service.http.get(signed.removeprefix("/eckart")).status_code == 200


@pytest.mark.parametrize(
    "to", ["", "events", "../..", "files/", "files/../job.json", "report?format=json", "archive\n"]
)
def test_only_results_are_linked(service, to):
    answer = service.http.post(f"{made(service)}/links", params={"to": to}, headers=ALICE)
    assert_problem(answer, 422, "invalid-request")


def test_without_keys_a_link_is_the_address_itself(service, start):
    open_to_all = start()
    job = made(open_to_all, owner={})
    given = link(open_to_all, job, "report?format=html", owner={})

    assert given == {"href": f"{job}/report?format=html", "expires_at": None}
    assert open_to_all.http.get(given["href"]).status_code == 200
