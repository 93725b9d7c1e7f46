"""`service.jobs.events` and `service.jobs.watch`: a job's changes as server-sent events."""

import asyncio
import json
import threading
from contextlib import contextmanager

import httpx
import pytest

from schemas.job import Progress
from service.jobs import events as watched_events
from service.jobs.events import Known
from service.jobs.watch import JobWatches
from state.errors import RedisUnavailable
from state.jobs.records import new_token
from tests.service.files import FILES, MODEL
from tests.service.running import SPEC, assert_problem, until


def half(layer="a"):
    return Progress(layers_done=1, layers_total=2, layer=layer, fraction=0.5)


@contextmanager
def listening(service, job_id, last=None):
    headers = {} if last is None else {"Last-Event-ID": last}
    with service.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        yield response, parsed(response.iter_lines())


def parsed(lines):
    """Yield (event, id, data), and comments as (':', text, None), by the rules of the HTML standard."""
    fields = {}
    for line in lines:
        name, _, value = line.partition(":")
        if not line:
            if "data" in fields:
                yield fields["event"], fields["id"], json.loads(fields["data"])
            fields = {}
        elif not name:
            yield ":", value.strip(), None
        else:
            fields[name] = value.removeprefix(" ")


def test_a_stream_tells_every_state_the_progress_and_the_end(service, job):
    with listening(service, job["id"]) as (response, events):
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-accel-buffering"] == "no"
        told = [next(events)]
        assert told[0][0] == "state"
        assert told[0][2]["links"]["events"] == f"/v1/jobs/{job['id']}/events"
        claim = service.jobs.claim(job["id"], new_token("test"))
        told.append(next(events))
        service.jobs.renew_lease(job["id"], claim.fence, half())
        told.append(next(events))
        service.publish(job["id"], claim, FILES)
        told += list(events)

    shown = service.http.get(f"/v1/jobs/{job['id']}").json()
    assert [name for name, _, _ in told] == ["state", "state", "progress", "state", "end"]
    assert [told[0][2]["state"], told[1][2]["state"]] == ["queued", "running"]
    assert told[2][2] == half().model_dump()
    assert told[3][2] == told[4][2] == shown
    assert len({event_id for _, event_id, _ in told}) == len(told)


def test_after_a_break_nothing_is_lost_and_nothing_comes_twice(service, job):
    with listening(service, job["id"]) as (_, events):
        _, last, _ = next(events)
    claim = service.jobs.claim(job["id"], new_token("test"))
    service.jobs.renew_lease(job["id"], claim.fence, half())
    with listening(service, job["id"], last) as (_, events):
        name, last, document = next(events)
        assert (name, document["state"]) == ("state", "running")
        assert document["progress"] == half().model_dump()
    service.jobs.renew_lease(job["id"], claim.fence, half("b"))
    with listening(service, job["id"], last) as (_, events):
        name, last, progress = next(events)
        assert (name, progress["layer"]) == ("progress", "b")
    service.publish(job["id"], claim, FILES)
    with listening(service, job["id"], last) as (_, events):
        assert [name for name, _, _ in events] == ["state", "end"]
    with listening(service, job["id"]) as (_, events):
        *_, (_, state, _), (_, end, _) = events
    with listening(service, job["id"], state) as (_, events):
        assert [name for name, _, _ in events] == ["end"]
    with listening(service, job["id"], end) as (response, _):
        assert response.status_code == 204  # what tells a browser not to come back


@pytest.mark.parametrize("last", ["", "5", "no such id", ":::::", "9999-:0:end"])
def test_an_unknown_id_begins_anew(service, job, last):
    with listening(service, job["id"], last) as (_, events):
        assert next(events)[0] == "state"


def test_a_move_in_the_queue_is_told(start):
    service = start()
    checkpoint = service.stored(MODEL)
    first, second = (service.submit(checkpoint).json()["id"] for _ in range(2))
    with listening(service, second) as (_, events):
        assert next(events)[2]["queue_position"] == 1
        service.jobs.cancel(first)
        assert next(events)[2]["queue_position"] == 0


def test_an_unknown_job_is_refused(service):
    assert_problem(service.http.get("/v1/jobs/J0/events"), 404, "job-not-found")
    long = {"Last-Event-ID": "x" * 300}
    assert_problem(service.http.get("/v1/jobs/J0/events", headers=long), 422, "invalid-request")


def test_a_head_request_is_answered_at_once(service, job):
    answer = service.http.head(f"/v1/jobs/{job['id']}/events")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_a_stream_of_a_deleted_job_ends(service, job):
    with listening(service, job["id"]) as (_, events):
        next(events)
        service.http.delete(f"/v1/jobs/{job['id']}")
        rest = [document["state"] for _, _, document in events]
    assert set(rest) <= {"canceled"}


def test_a_quiet_stream_has_comments(service, job, monkeypatch):
    monkeypatch.setattr(watched_events, "QUIET_S", 0.05)
    with listening(service, job["id"]) as (_, events):
        assert [next(events)[0] for _ in range(3)] == ["state", ":", ":"]


def test_too_many_streams_are_refused_until_one_leaves(start):
    service = start(max_streams=1)
    job = service.submit(service.stored(MODEL)).json()["id"]
    here = f"{service.url}/v1/jobs/{job}/events"
    with listening(service, job) as (_, events):
        next(events)
        answer = service.http.get(here)
        assert_problem(answer, 429, "busy")
        assert int(answer.headers["retry-after"]) > 0

    def let_in():
        with httpx.stream("GET", here) as response:
            return response.status_code == 200

    until(let_in)


def test_an_owner_leaves_streams_to_others(start):
    service = start(api_keys="alice:of-alice,bob:of-bob", max_streams=2)
    here = {}
    for name in ("alice", "bob"):
        key = {"X-API-Key": f"of-{name}"}
        service.http.put("/v1/checkpoints/m/model.safetensors", content=MODEL, headers=key)
        job = service.http.post("/v1/jobs", json={"checkpoint": "m", "spec": SPEC}, headers=key).json()
        here[name] = {"method": "GET", "url": f"/v1/jobs/{job['id']}/events", "headers": key}
    with service.http.stream(**here["alice"]) as first:
        assert first.status_code == 200
        assert_problem(service.http.request(**here["alice"]), 429, "busy")
        with service.http.stream(**here["bob"]) as other:
            assert other.status_code == 200


def test_requests_that_wait_and_streams_share_the_places_of_an_owner(start):
    service = start(api_keys="alice:of-alice,bob:of-bob", owner_waits=2, max_wait_s=0.2)
    here = {}
    for name in ("alice", "bob"):
        key = {"X-API-Key": f"of-{name}"}
        service.http.put("/v1/checkpoints/m/model.safetensors", content=MODEL, headers=key)
        job = service.http.post("/v1/jobs", json={"checkpoint": "m", "spec": SPEC}, headers=key).json()
        here[name] = {"method": "GET", "url": f"/v1/jobs/{job['id']}", "headers": key}
    alice = here["alice"]
    stream = alice | {"url": alice["url"] + "/events"}
    with service.http.stream(**stream), service.http.stream(**stream):
        for path in ("", "/report", "/checkpoint", "/archive"):
            waiting = alice | {"url": f"{alice['url']}{path}", "params": {"wait": 30}}
            refused = service.http.request(**waiting)
            assert_problem(refused, 429, "busy")
            assert int(refused.headers["retry-after"]) > 0
        assert service.http.request(**alice).status_code == 200  # which nothing holds
        assert service.http.request(**here["bob"], params={"wait": 30}).status_code == 200
    until(lambda: service.http.request(**alice, params={"wait": 30}).status_code == 200)


@pytest.mark.parametrize("after", ["bob:of-bob", "alice:another,bob:of-bob"], ids=["removed", "replaced"])
def test_a_stream_ends_when_its_key_is_removed(start, tmp_path, monkeypatch, after):
    monkeypatch.setattr(watched_events, "QUIET_S", 0.05)
    keys = tmp_path / "keys"
    keys.write_text("alice:of-alice\nbob:of-bob\n")
    service = start(api_keys=f"@{keys}")
    key = {"X-API-Key": "of-alice"}
    service.http.put("/v1/checkpoints/m/model.safetensors", content=MODEL, headers=key)
    job = service.http.post("/v1/jobs", json={"checkpoint": "m", "spec": SPEC}, headers=key).json()
    with service.http.stream("GET", f"/v1/jobs/{job['id']}/events", headers=key) as response:
        events = parsed(response.iter_lines())
        assert [next(events)[0] for _ in range(3)] == ["state", ":", ":"]
        keys.write_text(after.replace(",", "\n"))
        assert {name for name, _, _ in events} <= {":"}  # and then it is closed


def test_a_stream_ends_when_the_service_stops(start):
    service = start()
    job = service.submit(service.stored(MODEL)).json()["id"]
    with httpx.stream("GET", f"{service.url}/v1/jobs/{job}/events", timeout=30) as response:
        events = parsed(response.iter_lines())
        assert next(events)[0] == "state"
        service.__exit__()
        assert list(events) == []


class Counting:
    """A store that counts how often it is asked, and sometimes cannot be reached."""

    def __init__(self, jobs):
        self._jobs = jobs
        self.asked = 0

    def view(self, job_id):
        self.asked += 1
        if self.asked % 3 == 2:
            raise RedisUnavailable
        return self._jobs.view(job_id)


def test_any_number_of_listeners_asks_once(service, job):
    store = Counting(service.jobs)
    watches = JobWatches(store, threading.Event(), most_streams=1000, most_streams_each=1000, most_each=1000)
    seen = []

    async def listen():
        async for view in watches.follow(job["id"], quiet_s=60):
            seen.append(view.record.state)
            if view.record.state == "queued" and seen.count("queued") == 200:
                service.jobs.cancel(job["id"])

    async def listen_all():
        async with asyncio.TaskGroup() as group:
            for _ in range(200):
                group.create_task(listen())

    asyncio.run(listen_all())

    assert seen.count("queued") == seen.count("canceled") == 200
    assert store.asked < 50


def test_the_id_of_an_event_says_what_is_known():
    known = Known("3-1", "abc", "")
    assert Known.from_id(known.id) == known
    assert Known.from_id(None) == Known()
