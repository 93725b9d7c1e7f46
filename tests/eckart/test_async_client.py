"""`AsyncClient`: the same verbs as `Client`, which ask the same, and block no event loop."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import threading

import pytest
import torch
from safetensors.torch import save_file

import eckart
from eckart import (
    AsyncClient,
    Client,
    InputError,
    JobFailed,
    ProblemError,
    UnreachableError,
    WaitTimeoutError,
)

SPEC = {"method": "svd", "rank": 4}
RESULT = {"model.safetensors": b"smaller"}
BOUNDARY = re.compile(rb"[0-9a-f]{32}")
STREAM = {"Content-Type": "text/event-stream"}


def public(kind):
    return {name: value for name, value in vars(kind).items() if not name.startswith("_")}


def test_both_clients_have_the_same_verbs():
    sync, other = (
        {name: inspect.signature(verb).parameters.keys() for name, verb in public(kind).items()}
        for kind in (Client, AsyncClient)
    )

    assert sync == other


@pytest.fixture
def model(tmp_path):
    save_file({"a.weight": torch.ones(8, 8)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


async def collected(verb):
    if inspect.isawaitable(verb):
        return await verb
    return [item async for item in verb]


def asked(serve, respond, verb, *, asynchronous):
    """Return what a verb gives, and what it asks the service for."""
    seen = []

    def note(exchange):
        body = BOUNDARY.sub(b"", exchange.body)
        seen.append((exchange.method, exchange.handler.path, body, exchange.headers["Accept"]))
        respond(exchange)

    url = serve(note)
    if not asynchronous:
        with Client(url) as client:
            found = verb(client)
            return (list(found) if inspect.isgenerator(found) else found), seen

    async def main():
        async with AsyncClient(url) as client:
            return await collected(verb(client))

    return asyncio.run(main()), seen


def pipeline(model):
    """Return the folder of a pipeline with this model."""
    folder = model.parent / "pipeline"
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DModel"]}')
    (folder / "unet" / model.name).write_bytes(model.read_bytes())
    return folder


VERBS = {
    "upload": lambda client, model, into: client.upload(model, id="mine"),
    "submit": lambda client, model, into: client.submit("my-model", SPEC),
    "compress": lambda client, model, into: client.compress(model, SPEC),
    "compress with a calibration": lambda client, model, into: client.compress("id", SPEC, calibration=model),
    "compress a pipeline": lambda client, model, into: client.compress_pipeline(pipeline(model), SPEC, into),
    "plan": lambda client, model, into: client.plan(model, SPEC),
    "plan of an id": lambda client, model, into: client.plan("my-model", SPEC, base="other"),
    "job": lambda client, model, into: client.job("J1"),
    "wait": lambda client, model, into: client.wait("J1"),
    "wait for a while": lambda client, model, into: client.wait("J1", timeout_s=60),
    "report": lambda client, model, into: client.report("J1"),
    "download": lambda client, model, into: client.download("J1", into),
    "cancel": lambda client, model, into: client.cancel("J1"),
    "resume": lambda client, model, into: client.resume("J1"),
    "delete": lambda client, model, into: client.delete("J1"),
}


@pytest.mark.parametrize("name", VERBS)
def test_both_clients_ask_the_same_and_give_the_same(serve, service, model, tmp_path, name):
    def run(place, *, asynchronous):
        respond, _ = service(RESULT)
        found, seen = asked(
            serve,
            respond,
            lambda client: VERBS[name](client, model, tmp_path / place),
            asynchronous=asynchronous,
        )
        # The folder differs by intention.
        return json.dumps(found, default=str).replace(str(tmp_path / place), "into"), seen

    sync, other = run("sync", asynchronous=False), run("async", asynchronous=True)

    assert sync == other
    assert sync[1]


@pytest.mark.parametrize("verb", ["jobs", "checkpoints"])
def test_both_clients_go_through_all_pages(serve, job, verb):
    items = {"jobs": job("succeeded"), "checkpoints": {"id": "my-model"}}

    def respond(exchange):
        cursor = None if "cursor=" in exchange.handler.path else "more"
        exchange.answer(200, {verb: [items[verb]], "next_cursor": cursor})

    sync = asked(serve, respond, lambda client: getattr(client, verb)(), asynchronous=False)

    assert sync == asked(serve, respond, lambda client: getattr(client, verb)(), asynchronous=True)
    assert len(sync[0]) == len(sync[1]) == 2


def events_of(job):
    bodies = [
        f"event: {kind}\nid: {at}\ndata: {json.dumps(document)}\n\n".encode()
        for at, (kind, document) in enumerate([("state", job("running")), ("end", job("succeeded"))])
    ]

    def respond(exchange):
        # The stream breaks off after the first event, and the client comes back for the second.
        exchange.answer(200, bodies[0 if exchange.headers["Last-Event-ID"] is None else 1], STREAM)

    return respond


def test_both_clients_follow_events_across_a_break(serve, job):
    sync = asked(serve, events_of(job), lambda client: client.events("J1"), asynchronous=False)

    assert sync == asked(serve, events_of(job), lambda client: client.events("J1"), asynchronous=True)
    assert [event.kind for event in sync[0]] == ["state", "end"]


def test_waiting_with_progress_follows_events(serve, job):
    told = []

    def respond(exchange):
        body = f"event: end\nid: 1\ndata: {json.dumps(job('succeeded'))}\n\n".encode()
        exchange.answer(200, body, STREAM)

    def wait(client):
        return client.wait("J1", progress=lambda *step: told.append(step))

    found, seen = asked(serve, respond, wait, asynchronous=True)

    assert found.state == "succeeded"
    assert [path for _, path, *_ in seen] == ["/v1/jobs/J1/events"]
    assert told == [(0, 0, "succeeded")]


def test_two_waits_share_one_event_loop(serve, job):
    """The service answers neither before it has both, so a client that blocks would never get an answer."""
    both = threading.Barrier(2, timeout=60)

    def respond(exchange):
        both.wait()
        exchange.answer(200, job("succeeded"))

    async def main():
        async with AsyncClient(serve(respond)) as client:
            return await asyncio.gather(client.wait("J1"), client.wait("J2"))

    assert [done.state for done in asyncio.run(main())] == ["succeeded"] * 2


def test_progress_is_told_in_the_event_loop(serve, service, model):
    respond, _ = service(RESULT)
    threads = set()

    async def main():
        async with AsyncClient(serve(respond)) as client:
            await client.upload(model, progress=lambda *_: threads.add(threading.current_thread()))
            await asyncio.sleep(0)

    asyncio.run(main())

    assert threads == {threading.main_thread()}


def test_a_broken_line_is_tried_again(serve, job):
    answers = iter([{"cut": 3}, {}])

    def respond(exchange):
        exchange.answer(200, job("succeeded"), **next(answers))

    found, seen = asked(serve, respond, lambda client: client.job("J1"), asynchronous=True)

    assert found.state == "succeeded"
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("status", "state", "verb", "error"),
    [
        (422, None, lambda client: client.submit("id", SPEC), ProblemError),
        (200, "failed", lambda client: client.wait("J1"), JobFailed),
        (200, "running", lambda client: client.wait("J1", timeout_s=0), WaitTimeoutError),
        (200, "running", lambda client: client.upload("gone.safetensors"), InputError),
    ],
)
def test_errors_are_those_of_the_other_client(serve, job, problem, status, state, verb, error):
    document = problem() if state is None else job(state)

    with pytest.raises(error):
        asked(serve, lambda exchange: exchange.answer(status, document), verb, asynchronous=True)


def test_an_unreachable_service_is_told(monkeypatch):
    monkeypatch.setenv("ECKART_URL", "http://127.0.0.1:9")

    async def main():
        async with AsyncClient() as client:
            await client.job("J1")

    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9"):
        asyncio.run(main())


def test_the_key_is_sent_and_not_shown(serve, service):
    respond, _ = service(RESULT)
    keys = set()

    def note(exchange):
        keys.add(exchange.headers["Authorization"])
        respond(exchange)

    async def main():
        async with AsyncClient(serve(note), api_key="sekret") as client:
            await client.job("J1")
            return repr(vars(client)), repr(vars(client._connection))

    shown = asyncio.run(main())

    assert keys == {"Bearer sekret"}
    assert not any("sekret" in text for text in shown)


def test_a_canceled_download_ends_its_thread(serve, service, tmp_path):
    """`asyncio.run` waits for the thread, which waits for bytes that do not come before the cancellation."""
    respond, _ = service(RESULT)
    begun, over = threading.Event(), threading.Event()

    def hold(exchange):
        if "/files/" in exchange.path:
            begun.set()
            over.wait(60)
        respond(exchange)

    async def main():
        async with AsyncClient(serve(hold), patience_s=60) as client:
            task = asyncio.create_task(client.download("J1", tmp_path))
            await asyncio.to_thread(begun.wait, 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    try:
        asyncio.run(main())
        assert not over.is_set()
    finally:
        over.set()
    assert list(tmp_path.glob("*.safetensors")) == []


def test_it_is_a_public_name():
    assert eckart.AsyncClient is AsyncClient
