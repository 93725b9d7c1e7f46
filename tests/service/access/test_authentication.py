"""`access.authentication`, and owners at every address: 401 without a key, and the 404 of unknown ids.

Each operation of the OpenAPI document is walked; one that these tests cannot walk fails them.
"""

import json
import re
import socket

import pytest

from service.app import create_app
from service.settings import Settings
from state.checkpoints.store import CheckpointStore
from tests.service.files import FILES, checkpoint_bytes
from tests.service.running import SPEC, assert_problem

MODEL = checkpoint_bytes()
OTHER = checkpoint_bytes({"other.weight": (4, 5)})
KEYS = "alice:of-alice,bob:of-bob,default:of-nobody"
ALICE, BOB, NOBODY = ({"Authorization": f"Bearer of-{name}"} for name in ("alice", "bob", "nobody"))
WRONG_KEYS = [
    {},
    {"Authorization": "Bearer of-carol"},
    {"Authorization": "Bearer"},
    {"Authorization": "Basic b2YtYWxpY2U="},
    {"Authorization": "of-alice"},
    {"X-API-Key": "alice"},
    {"X-API-Key": "alice:of-alice"},
    {"X-API-Key": ""},
    {"Authorization": "Bearer of-carol", "X-API-Key": "of-alice"},
    {"Authorization": "Bearer of-alice", "X-API-Key": "of-carol"},
    {"Authorization": "Bearer of-alice", "X-API-Key": "of-bob"},
    [("Authorization", "Bearer of-alice"), ("Authorization", "Bearer of-bob")],
    [("X-API-Key", "of-alice"), ("X-API-Key", "of-carol")],
]

METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
# Where ids stand in addresses; unknown ones have the same shape.
UNKNOWN = {
    "checkpoint_id": "unknown",
    "job_id": "J" + "0" * 32,
    "upload_id": "U" + "0" * 32,
    "filename": "model.safetensors",
}
# Without these a request is refused before its id is looked up.
NEEDED = {
    "patch /v1/uploads/{upload_id}": {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
}
OPEN = {"get /livez", "get /readyz"}
# These answer everybody alike who has a key.
ALIKE = {"get /metrics", "options /v1/uploads"}
# These store something under an id of the owner's own, so that a foreign id is a new one.
STORING = {
    "put /v1/checkpoints/{checkpoint_id}/{filename}",
    "post /v1/checkpoints/{checkpoint_id}",
    "post /v1/uploads",
}
# These name a checkpoint in their body.
NAMING = {"post /v1/jobs", "post /v1/plans"}
LISTS = {"get /v1/checkpoints", "get /v1/jobs"}


def operations():
    paths = create_app(Settings(redis_url="redis://nowhere")).openapi()["paths"]
    return [f"{method} {path}" for path, item in paths.items() for method in METHODS if method in item]


OPERATIONS = operations()
BY_ID = [name for name in OPERATIONS if "{" in name and name not in STORING]


def filled(path, ids):
    """Return the address with these ids; a placeholder without one fails."""
    return re.sub(r"{(\w+)}", lambda found: ids[found[1]], path)


@pytest.fixture
def service(start):
    return start(api_keys=KEYS)


@pytest.fixture
def owned(service):
    """Return the ids of what alice has: a checkpoint, and a job that succeeded."""
    assert put(service, "m", MODEL, ALICE).status_code == 201
    job = submit(service, {"checkpoint": "m", "spec": SPEC}, ALICE).json()["id"]
    service.finish(job, FILES)
    upload = {"Upload-Length": "9", "Upload-Metadata": "checkpoint bQ==,filename YS5zYWZldGVuc29ycw=="}
    address = service.http.post("/v1/uploads", headers={**ALICE, **upload}).headers["Location"]
    ids = {"checkpoint_id": "m", "job_id": job, "upload_id": address.rpartition("/")[2]}
    return {**ids, "filename": "model.safetensors"}


def put(service, checkpoint_id, content, key):
    address = f"/v1/checkpoints/{checkpoint_id}/model.safetensors"
    return service.http.put(address, content=content, headers=key)


def submit(service, document, key, path="/v1/jobs", **headers):
    return service.http.post(path, json=document, headers={**key, **headers})


def ids_of(service, key):
    return [job["id"] for job in service.http.get("/v1/jobs", headers=key).json()["jobs"]]


def test_every_operation_is_walked():
    assert set(OPERATIONS) == {*OPEN, *ALIKE, *STORING, *NAMING, *LISTS, *BY_ID}
    placeholders = {name for each in OPERATIONS for name in re.findall(r"{(\w+)}", each)}
    assert placeholders == set(UNKNOWN)


def test_without_a_known_key_every_operation_is_the_same_401(service, owned):
    bodies = set()
    for operation in set(OPERATIONS) - OPEN:
        method, _, path = operation.partition(" ")
        for ids in (owned, UNKNOWN):
            for key in WRONG_KEYS:
                answer = service.http.request(method, filled(path, ids), headers=key)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == 'Bearer realm="eckart"'
                if method != "head":
                    assert_problem(answer, 401, "unauthorized")
                    bodies.add(answer.content)
    assert len(bodies) == 1
    assert service.jobs.get(owned["job_id"]).state == "succeeded"


@pytest.mark.parametrize("field", [("Authorization", "Bearer of-alice"), ("X-API-Key", "of-alice")])
def test_the_same_key_twice_is_one_key(service, field):
    assert service.http.get("/v1/jobs", headers=[field, field]).status_code == 200


def test_unknown_addresses_are_401_too(service):
    for path in ("/nothing", "/v1", "/v1/jobs/", "//v1/jobs", "/livez/x", "/docsx", "/docs/../v1/jobs"):
        assert service.http.get(path).status_code == 401, path


def test_the_open_addresses_need_no_key(service):
    for path in ("/livez", "/readyz", "/", "/docs", "/docs/start.js", "/openapi.json"):
        assert service.http.get(path).status_code in {200, 307, 503}, path


def test_a_foreign_id_is_the_404_of_an_unknown_one(service, owned):
    for operation in BY_ID:
        method, _, path = operation.partition(" ")
        for verb in {method, "head"} if method == "get" else {method}:
            headers = {**BOB, **NEEDED.get(operation, {})}
            foreign = service.http.request(verb, filled(path, owned), headers=headers)
            unknown = service.http.request(verb, filled(path, UNKNOWN), headers=headers)
            assert foreign.status_code == unknown.status_code == 404, operation
            assert foreign.content == unknown.content, operation
            assert _steady(foreign.headers) == _steady(unknown.headers), operation
    # And the owner still has all of it.
    for operation in BY_ID:
        method, _, path = operation.partition(" ")
        if method in {"get", "head"}:
            assert service.http.request(method, filled(path, owned), headers=ALICE).status_code == 200, (
                operation
            )


def _steady(headers):
    return {name: value for name, value in headers.items() if name not in {"date", "x-request-id"}}


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans"])
@pytest.mark.parametrize("field", ["checkpoint", "calibration", "base"])
def test_a_foreign_checkpoint_cannot_be_named(service, owned, path, field):
    assert put(service, "mine", MODEL, BOB).status_code == 201

    def named(checkpoint_id):
        if field == "checkpoint":
            return submit(service, {"checkpoint": checkpoint_id, "spec": SPEC}, BOB, path)
        return submit(service, {"checkpoint": "mine", "spec": {**SPEC, field: checkpoint_id}}, BOB, path)

    foreign, unknown = named("m"), named("unknown")
    assert_problem(foreign, 404, "checkpoint-not-found")
    assert foreign.text.replace("checkpoints/m/", "checkpoints/unknown/") == unknown.text


def test_lists_show_ones_own(service, owned):
    assert put(service, "m", OTHER, BOB).status_code == 201
    made = submit(service, {"checkpoint": "m", "spec": SPEC}, BOB).json()["id"]
    assert ids_of(service, ALICE) == [owned["job_id"]]
    assert ids_of(service, BOB) == [made]
    assert ids_of(service, NOBODY) == []


def test_owners_use_one_id_without_noticing_one_another(service, owned):
    assert put(service, "m", OTHER, BOB).status_code == 201
    names = [
        service.http.get("/v1/checkpoints/m", headers=key).json()["tensors"][0]["name"]
        for key in (ALICE, BOB)
    ]
    assert names[0] != names[1]
    assert service.http.delete("/v1/checkpoints/m", headers=BOB).status_code == 204
    assert service.http.get("/v1/checkpoints/m", headers=ALICE).status_code == 200


def test_an_idempotency_key_is_its_owners(service, owned):
    assert put(service, "m", MODEL, BOB).status_code == 201
    document = {"checkpoint": "m", "spec": SPEC}
    made = [
        submit(service, document, key, **{"Idempotency-Key": "k"}).json()["id"] for key in (ALICE, BOB) * 2
    ]
    assert made[:2] == made[2:]
    assert made[0] != made[1]


def test_a_job_with_its_files_is_its_owners(service):
    parts = {"files": [("checkpoint", ("m.safetensors", MODEL))], "data": {"spec": json.dumps(SPEC)}}
    job = service.http.post("/v1/jobs", headers=BOB, **parts).json()
    assert CheckpointStore(service.data_dir, "bob").exists(job["checkpoint"])
    assert service.http.get(f"/v1/checkpoints/{job['checkpoint']}", headers=ALICE).status_code == 404
    assert service.http.delete(f"/v1/jobs/{job['id']}", headers=BOB).status_code == 204
    assert not CheckpointStore(service.data_dir, "bob").exists(job["checkpoint"])


def test_either_header_carries_a_key(service, owned):
    for key in ({"X-API-Key": "of-alice"}, {"Authorization": "bearer  of-alice"}, ALICE):
        assert ids_of(service, key) == [owned["job_id"]]
    proxied = {"Authorization": "Basic b2Y6cHJveHk=", "X-API-Key": "of-alice"}
    assert ids_of(service, proxied) == [owned["job_id"]]


def test_a_refusal_comes_before_the_body(service):
    for head in (b"PUT /v1/checkpoints/a/m.safetensors", b"POST /v1/jobs"):
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
            connection.sendall(
                head + b" HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
                b"Content-Length: 1000000000\r\n\r\n"
            )
            assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")
    assert service.leftovers() == []


def test_what_was_made_without_keys_is_the_default_keys(start):
    old = start()
    stored = old.stored(MODEL)
    job = old.submit(stored).json()["id"]
    new = start(api_keys=KEYS)
    for key, status in ((NOBODY, 200), (ALICE, 404), (BOB, 404)):
        assert new.http.get(f"/v1/checkpoints/{stored}", headers=key).status_code == status
        assert new.http.get(f"/v1/jobs/{job}", headers=key).status_code == status
    assert ids_of(new, NOBODY) == [job]


def test_a_service_without_keys_shows_nothing_of_owners(start, service, owned):
    without = start()
    assert without.http.get("/v1/jobs").json()["jobs"] == []
    assert without.http.get(f"/v1/jobs/{owned['job_id']}").status_code == 404
    assert without.http.get("/v1/checkpoints/m").status_code == 404


def test_a_changed_file_of_keys_counts_without_a_restart(start, tmp_path):
    file = tmp_path / "keys"
    file.write_text("alice:of-alice\n")
    service = start(api_keys=f"@{file}")
    assert service.http.get("/v1/jobs", headers=BOB).status_code == 401
    file.write_text("bob:of-bob\nalice:changed\n")
    assert service.http.get("/v1/jobs", headers=BOB).status_code == 200
    assert service.http.get("/v1/jobs", headers=ALICE).status_code == 401


def test_with_keys_any_host_is_answered_unless_some_are_named(start):
    foreign = {"Host": "models.example"}
    assert start(api_keys=KEYS).http.get("/v1/jobs", headers=ALICE | foreign).status_code == 200
    named = start(api_keys=KEYS, allowed_hosts="other.example")
    assert named.http.get("/v1/jobs", headers=ALICE | foreign).status_code == 421


def test_a_root_path_changes_nothing(start):
    service = start(api_keys=KEYS, root_path="/eckart")
    for path in ("/eckart/livez", "/livez", "/eckart/docs"):
        assert service.http.get(path).status_code == 200
    for path in ("/eckart/v1/jobs", "/v1/jobs", "/eckart/eckart/livez"):
        assert service.http.get(path).status_code == 401
    assert service.http.get("/v1/jobs", headers={"X-Forwarded-Prefix": "/livez"}).status_code == 401


def test_a_prefix_of_the_client_opens_nothing(service):
    for prefix in ("/v1/jobs", "/docs", "/livez"):
        for path in ("/v1/jobs", "/x/v1/jobs", "/jobs"):
            assert service.http.get(path, headers={"X-Forwarded-Prefix": prefix}).status_code == 401


def test_a_list_of_checkpoints_has_the_owners_alone(service, owned):
    listed = {
        name: [each["id"] for each in service.http.get("/v1/checkpoints", headers=key).json()["checkpoints"]]
        for name, key in {"alice": ALICE, "bob": BOB}.items()
    }
    assert listed == {"alice": [owned["checkpoint_id"]], "bob": []}
