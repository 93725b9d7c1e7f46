"""Every hostile file meets the whole service, by every door, and leaves it as it was."""

import io

import httpx
import pytest
import torch
from safetensors.torch import save

from tests.schemas.format.test_checkpoint_attacks import ATTACKS

SPEC = '{"method":"svd","rank":{"ratio":0.5}}'


@pytest.fixture(scope="module")
def http(service):
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield client


def put(http, raw):
    return http.put("/v1/checkpoints/hostile/model.safetensors", content=raw)


def put_in_pieces(http, raw):
    stream = io.BytesIO(raw)
    return http.put("/v1/checkpoints/hostile/model.safetensors", content=iter(lambda: stream.read(1000), b""))


def submit_files(http, raw):
    return http.post("/v1/jobs", data={"spec": SPEC}, files={"checkpoint": ("model.safetensors", raw)})


DOORS = (put, put_in_pieces, submit_files)


def met():
    """Yield pairs of a door and an attack: all doors for the first of each fault, else one, in turn.

    `test_checkpoint_attacks.py` has every attack in pieces of every size.
    """
    known = set()
    for number, attack in enumerate(ATTACKS):
        doors = DOORS if attack.fault not in known else DOORS[number % 3 :][:1]
        known.add(attack.fault)
        yield from (pytest.param(door, attack, id=f"{door.__name__}-{attack.label}") for door in doors)


def things_on_disk(service):
    places = [service.data_dir / name for name in ("checkpoints", "jobs", "parts")]
    return sorted(path for place in places for path in place.rglob("*"))


@pytest.mark.parametrize(("door", "attack"), list(met()))
def test_a_hostile_file_is_refused_by_name_and_nothing_stays(service, http, door, attack):
    before = things_on_disk(service)
    answer = door(http, attack.raw)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    prefix = "urn:eckart:problem:invalid-checkpoint:"
    assert problem["type"] in {prefix + attack.fault, prefix + attack.fault.replace("truncated", "past-end")}
    assert attack.names in problem["detail"] or problem["type"] == prefix + "past-end"
    assert things_on_disk(service) == before
    assert http.get("/v1/checkpoints/hostile").status_code == 404


def test_the_service_is_well_afterwards(service, http):
    weights = {"a.weight": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))}
    answer = submit_files(http, save(weights))

    assert answer.status_code == 202
    assert service.client.wait(answer.json()["id"]).state == "succeeded"
    assert http.get("/readyz").status_code == 200
