"""Uploading: what is sent, in what order, and what happens when it does not get through."""

from __future__ import annotations

import hashlib
import json

import httpx
import pytest
import torch
from safetensors.torch import save_file

from eckart import Client, InputError, ProblemError, TransferError
from eckart.http import repr_digest

INDEX = "model.safetensors.index.json"


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file({"x.weight": torch.ones(2, 3)}, path)
    return path


@pytest.fixture
def sharded(tmp_path):
    for number in (1, 2):
        save_file({f"x{number}.weight": torch.ones(2, 3)}, tmp_path / f"part-{number}.safetensors")
    weight_map = {f"x{number}.weight": f"part-{number}.safetensors" for number in (1, 2)}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Store:
    """The answers of a service's upload routes, as one function on requests."""

    def __init__(self, *, held=(), answers=()):
        self.held = list(held)
        self.answers = list(answers)
        self.requests = []

    def __call__(self, request):
        request.read()
        self.requests.append(request)
        if request.method == "GET":
            return httpx.Response(200, json={"id": "x", "files": self.held, "complete": False})
        answer = self.answers.pop(0) if self.answers else httpx.Response(201)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def sent(self):
        return [request for request in self.requests if request.method == "PUT"]


def upload(store, path, **options):
    with Client("http://here", transport=httpx.MockTransport(store), patience_s=5) as client:
        return client.upload(path, **options)


def test_a_file_is_sent_raw_with_its_digest_and_length(tiny):
    store = Store()

    assert upload(store, tiny, id="my-model") == "my-model"

    (request,) = store.sent
    assert request.url.path == "/v1/checkpoints/my-model/tiny.safetensors"
    assert request.content == tiny.read_bytes()
    assert request.headers["Content-Length"] == str(tiny.stat().st_size)
    assert request.headers["Repr-Digest"] == repr_digest(sha256(tiny))
    assert "Transfer-Encoding" not in request.headers


def test_a_directory_is_sent_whole_with_the_index_first(sharded):
    store = Store()
    name = upload(store, sharded)

    assert [request.url.path for request in store.sent] == [
        f"/v1/checkpoints/{name}/{file}" for file in (INDEX, "part-1.safetensors", "part-2.safetensors")
    ]


def test_the_same_bytes_get_the_same_id_and_other_bytes_another(tiny):
    first, again = upload(Store(), tiny), upload(Store(), tiny)
    save_file({"x.weight": torch.zeros(2, 3)}, tiny)
    other = upload(Store(), tiny)

    assert first == again
    assert first != other
    assert first.startswith("tiny-")


@pytest.mark.parametrize("name", ["-odd", "ä b", "x" * 200])
def test_a_directory_of_any_name_gives_an_id_the_service_takes(tiny, name):
    directory = tiny.parent / name
    directory.mkdir()
    tiny.rename(directory / tiny.name)
    store = Store()
    upload(store, directory)

    assert len(store.sent) == 1


def test_what_the_service_holds_already_is_not_sent_again_and_that_is_said(sharded):
    held = [{"name": "part-1.safetensors", "size_bytes": 1, "sha256": sha256(sharded / "part-1.safetensors")}]
    store, said = Store(held=held), []
    upload(store, sharded, progress=lambda done, total, what: said.append((done, total, what)))

    assert [request.url.path.rsplit("/", 1)[1] for request in store.sent] == [INDEX, "part-2.safetensors"]
    assert "already there: part-1.safetensors" in [what for _, _, what in said]
    assert said[-1][0] == said[-1][1] == sum(path.stat().st_size for path in sharded.iterdir())


def test_another_file_under_the_same_name_is_left_to_the_service_to_refuse(tiny, problem):
    held = [{"name": tiny.name, "size_bytes": 1, "sha256": "0" * 64}]
    store = Store(held=held, answers=[httpx.Response(409, json=problem(409, "Other bytes"))])

    with pytest.raises(ProblemError, match="Other bytes"):
        upload(store, tiny, id="my-model")


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.Response(503, headers={"Retry-After": "0"}),
        httpx.Response(429, headers={"Retry-After": "0"}),
        httpx.Response(502, html="<h1>Bad Gateway</h1>"),
        httpx.WriteError("broken pipe"),
        httpx.RemoteProtocolError("cut"),
        httpx.ConnectError("refused"),
    ],
    ids=repr,
)
def test_a_passing_trouble_is_outlived_with_the_whole_body_sent_anew(tiny, trouble):
    store = Store(answers=[trouble, trouble])
    upload(store, tiny)

    assert [request.content for request in store.sent] == [tiny.read_bytes()] * 3


@pytest.mark.parametrize("status", [400, 409, 413, 415, 422, 500, 507])
def test_a_refusal_is_not_tried_again(tiny, status, problem):
    store = Store(answers=[httpx.Response(status, json=problem(status, "No"))])

    with pytest.raises(ProblemError):
        upload(store, tiny)

    assert len(store.sent) == 1


def test_trouble_that_does_not_pass_is_told_in_the_end(tiny):
    store = Store(answers=[httpx.ReadError("cut")] * 100)

    with (
        Client("http://here", transport=httpx.MockTransport(store), patience_s=0.2) as client,
        pytest.raises(TransferError, match="cut"),
    ):
        client.upload(tiny)

    assert len(store.sent) > 1


@pytest.mark.parametrize("change", [-1, +1])
def test_a_file_that_changes_underway_is_noticed(serve, tiny, change):
    """The file is hashed first; if its length has changed when it is sent, the upload fails."""

    def respond(exchange):
        if exchange.method == "GET":
            content = tiny.read_bytes()
            tiny.write_bytes(content[:-1] if change < 0 else content + b"x")
        exchange.answer(404 if exchange.method == "GET" else 201)

    with (
        Client(serve(respond), patience_s=5) as client,
        pytest.raises(InputError, match="changed while it was being sent"),
    ):
        client.upload(tiny)


@pytest.mark.parametrize("name", ["", "-x", "a/b", "x" * 129, "ä", "x\n"])
def test_an_id_the_service_would_not_take_is_refused_here(tiny, name):
    store = Store()

    with pytest.raises(InputError, match="is no id"):
        upload(store, tiny, id=name)

    assert store.requests == []


def test_a_refusal_that_comes_before_the_body_is_through_is_heard(serve, tmp_path, problem):
    """The service answers at once and reads no further than it must; the client must not miss the reason."""
    path = tmp_path / "big.safetensors"
    save_file({"x.weight": torch.zeros(2048, 2048)}, path)
    puts = []

    def respond(exchange):
        if exchange.method == "GET":
            exchange.answer(404)
        else:
            puts.append(exchange.path)
            exchange.answer(413, problem(413, "Too large"), early=True)

    with Client(serve(respond), patience_s=1) as client, pytest.raises(ProblemError, match="Too large"):
        client.upload(path)

    assert len(puts) == 1
