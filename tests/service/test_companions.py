"""Companions over HTTP: stored one by one or in a form, shown, limited, and part of a job."""

import secrets

import pytest

from state.jobs.records import new_token
from tests.service.files import FILES, MODEL
from tests.service.running import assert_problem

CONFIG = b'{"model_type": "bert"}'
COMPANIONS = {"config.json": CONFIG, "vocab.txt": b"a\nb\n", "spiece.model": b"\x0a\x0e", "README.md": b"#"}


def fresh_id():
    return "t" + secrets.token_hex(8)


def test_companions_are_stored_and_shown_and_the_tensors_ignore_them(service):
    checkpoint_id = fresh_id()
    for name, content in COMPANIONS.items():
        assert service.put(checkpoint_id, name, content).status_code == 201
    assert service.http.get(f"/v1/checkpoints/{checkpoint_id}").json()["missing"] == ["a .safetensors file"]
    service.put(checkpoint_id, "model.safetensors", MODEL)

    document = service.http.get(f"/v1/checkpoints/{checkpoint_id}").json()
    assert [file["name"] for file in document["files"]] == sorted([*COMPANIONS, "model.safetensors"])
    assert (document["complete"], document["missing"]) == (True, [])
    assert {tensor["name"] for tensor in document["tensors"]} == {"layer.0.weight", "layer.0.bias"}
    body = {"checkpoint": checkpoint_id, "spec": {"rank": 1}}
    assert service.http.post("/v1/plans", json=body).status_code == 200


def test_the_same_companion_again_changes_nothing_and_another_is_refused(service):
    checkpoint_id = fresh_id()
    service.put(checkpoint_id, "vocab.txt", b"a")
    assert service.put(checkpoint_id, "vocab.txt", b"a").status_code == 200
    assert_problem(service.put(checkpoint_id, "vocab.txt", b"b"), 409, "content-conflict")


def test_a_job_is_created_with_its_whole_folder_and_bound_to_all_of_it(service):
    job = service.submit_files({**FILES, **COMPANIONS}).json()

    record = service.jobs.get(job["id"])
    assert {file.name for file in record.files} == {*FILES, *COMPANIONS}
    claim = service.jobs.claim(job["id"], new_token("test"))
    assert {file.name for file in claim.record.files} == {*FILES, *COMPANIONS}


def test_the_same_key_with_another_companion_is_another_request(service):
    key = {"Idempotency-Key": secrets.token_hex(8)}
    first = service.submit_files({**FILES, "vocab.txt": b"a"}, **key)
    assert service.submit_files({**FILES, "vocab.txt": b"a"}, **key).json()["id"] == first.json()["id"]
    again = service.submit_files({**FILES, "vocab.txt": b"b"}, **key)
    assert_problem(again, 422, "idempotency-mismatch")


def test_a_form_of_companions_alone_lacks_the_weights(service):
    problem = assert_problem(service.submit_files(COMPANIONS), 422, "invalid-checkpoint:missing-files")
    assert "a .safetensors file" in problem["detail"]


MODULES = b'[{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}, {"idx": 2, "path": "2_Dense"}]'


def test_modules_whose_subfolders_are_not_sent_are_told_in_the_plan_and_the_job(service):
    job = service.submit_files({**FILES, "modules.json": MODULES}).json()
    body = {"checkpoint": job["checkpoint"], "spec": {"rank": 1}}
    plan = service.http.post("/v1/plans", json=body).json()

    for document in (job, plan):
        (said,) = (warning for warning in document["warnings"] if "modules.json" in warning)
        assert '"1_Pooling", "2_Dense"' in said
        assert "copy them from the model's own folder" in said


@pytest.mark.parametrize(
    "modules", [b'[{"path": ""}]', b"[", b"{}", b"[7]", b'[{"p": 1}]', b"[" * 100_000, b"\xff"]
)
def test_modules_without_subfolders_are_no_warning(service, modules):
    job = service.submit_files({**FILES, "modules.json": modules}).json()

    assert job["warnings"] == []


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling.py", "report.json", "tf.index.json"])
def test_other_files_are_refused_and_nothing_of_the_form_stays(service, name):
    before = service.leftovers()
    problem = assert_problem(service.submit_files({**FILES, name: b"x"}), 422, "invalid-request")
    assert problem["detail"].endswith(("leave out the rest.", "leave it out."))
    assert_problem(service.put(fresh_id(), name, b"x"), 422, "invalid-request")
    assert service.leftovers() == before


def test_a_companion_over_its_limit_is_413_at_its_first_byte(service):
    request = (
        f"PUT /v1/checkpoints/{fresh_id()}/tokenizer.json HTTP/1.1\r\nHost: localhost\r\n"
        "Connection: close\r\nContent-Length: 67108865\r\n\r\n{"
    )
    answer = service.raw(request.encode())
    assert b"413" in answer.partition(b"\r\n")[0]
    assert b"The file tokenizer.json is larger than the limit of 67108864 bytes" in answer


def test_the_limit_of_all_companions_stops_a_form_before_its_first_file_is_stored(service, monkeypatch):
    monkeypatch.setattr("state.checkpoints.consistency.MAX_COMPANIONS_BYTES", 5)
    checkpoint_id = fresh_id()
    parts = [("checkpoint", (f"{name}.txt", b"xyz")) for name in "ab"]
    answer = service.http.post(f"/v1/checkpoints/{checkpoint_id}", files=parts)
    assert "5 bytes" in assert_problem(answer, 413, "too-large")["detail"]
    assert service.http.get(f"/v1/checkpoints/{checkpoint_id}").status_code == 404


def test_a_config_that_is_none_is_refused_with_what_it_looks_like(service):
    problem = assert_problem(
        service.put(fresh_id(), "config.json", b"<html>"), 422, "invalid-checkpoint:bad-config"
    )
    assert "<html>" in problem["detail"]


def test_a_companions_name_in_a_form_is_made_legal_and_two_of_one_name_are_refused(service):
    files = {**FILES, "model/chat templ\u00e4te (1).JINJA": b"x"}
    job = service.submit_files(files).json()
    names = {
        file["name"] for file in service.http.get(f"/v1/checkpoints/{job['checkpoint']}").json()["files"]
    }
    assert names == {"model.safetensors", "chat-template-1.jinja"}
    assert any("chat-template-1.jinja" in warning for warning in job["warnings"])

    files = {**FILES, "model/config.json": CONFIG, "model/1_Pooling/config.json": b"{}"}
    problem = assert_problem(service.submit_files(files), 422, "invalid-multipart")
    assert "would both be stored as config.json" in problem["detail"]


def test_a_config_of_very_many_values_is_refused_before_objects_are_made_of_it(service):
    config = b'{"a":[' + b"[]," * 500_000 + b"0]}"

    refused = service.put("u" + secrets.token_hex(8), "config.json", config)

    detail = assert_problem(refused, 422, "invalid-checkpoint:bad-config")["detail"]
    assert f"values in {len(config)} bytes" in detail
