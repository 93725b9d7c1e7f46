"""`jobs.results`, `routes.results`: files are sent whole or in part, and not before they exist."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path

import pytest

from schemas.problem import ProblemKind
from schemas.report import Report
from state.jobs.records import new_token
from tests.service.files import checkpoint_bytes, sharded_set
from tests.service.running import assert_problem

MODEL = checkpoint_bytes({"a.weight": (64, 64)})
SHA256 = hashlib.sha256(MODEL)
ROUTES = ("report", "checkpoint", "files/model.safetensors", "files/report.json")


@pytest.fixture
def job(service):
    return service.submit(service.stored(checkpoint_bytes())).json()["id"]


@pytest.fixture
def here(service, job):
    service.finish(job, {"model.safetensors": MODEL})
    return f"/v1/jobs/{job}"


@pytest.mark.parametrize("path", ["checkpoint", "files/model.safetensors"])
def test_a_file_comes_whole_with_its_digest(service, here, path):
    answer = service.http.get(f"{here}/{path}")

    assert answer.status_code == 200
    assert answer.content == MODEL
    assert answer.headers["etag"] == f'"{SHA256.hexdigest()}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(SHA256.digest()).decode()}:"
    assert answer.headers["content-length"] == str(len(MODEL))
    assert answer.headers["accept-ranges"] == "bytes"
    assert 'filename="model.safetensors"' in answer.headers["content-disposition"]


@pytest.mark.parametrize("path", ROUTES)
def test_a_head_says_the_same_without_the_body(service, here, path):
    head, get = service.http.head(f"{here}/{path}"), service.http.get(f"{here}/{path}")

    assert head.status_code == 200
    assert head.content == b""
    ours = ("etag", "repr-digest", "content-length", "content-type")
    assert {name: head.headers[name] for name in ours} == {name: get.headers[name] for name in ours}


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=100-", 100, len(MODEL)),
        ("bytes=-7", len(MODEL) - 7, len(MODEL)),
        ("bytes=5-99999999", 5, len(MODEL)),
    ],
)
def test_a_range_gives_those_bytes(service, here, wanted, start, end):
    answer = service.http.get(f"{here}/checkpoint", headers={"Range": wanted})

    assert answer.status_code == 206
    assert answer.content == MODEL[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(MODEL)}"


@pytest.mark.parametrize("path", ROUTES)
def test_several_ranges_come_in_one_multipart_answer(service, here, path):
    """As RFC 9110, 14.6, and the schema of the API say; each part tells which bytes it holds."""
    whole = service.http.get(f"{here}/{path}").content

    answer = service.http.get(f"{here}/{path}", headers={"Range": "bytes=0-9,20-29,-5"})

    assert answer.status_code == 206
    kind = answer.headers["content-type"]
    assert kind.startswith("multipart/byteranges; boundary=")
    assert "content-range" not in answer.headers
    parsed = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + answer.content)
    parts = {part["Content-Range"]: part.get_payload(decode=True) for part in parsed.iter_parts()}
    end = len(whole)
    assert parts == {
        f"bytes 0-9/{end}": whole[:10],
        f"bytes 20-29/{end}": whole[20:30],
        f"bytes {end - 5}-{end - 1}/{end}": whole[-5:],
    }
    head = service.http.head(f"{here}/{path}", headers={"Range": "bytes=0-9,20-29"})
    assert head.status_code == 206
    assert head.content == b""


def test_a_download_is_resumed_only_while_the_file_is_the_same(service, here):
    same = {"Range": "bytes=10-", "If-Range": f'"{SHA256.hexdigest()}"'}
    other = {"Range": "bytes=10-", "If-Range": '"else"'}

    assert service.http.get(f"{here}/checkpoint", headers=same).content == MODEL[10:]
    assert service.http.get(f"{here}/checkpoint", headers=other).content == MODEL


def test_a_range_outside_the_file_is_refused(service, here):
    refused = service.http.get(f"{here}/checkpoint", headers={"Range": f"bytes={len(MODEL)}-"})

    assert_problem(refused, 416, "range-not-satisfiable")
    assert refused.headers["content-range"] == f"bytes */{len(MODEL)}"


@pytest.mark.parametrize(
    "wanted", ["bytes", "lines=1-2", "bytes=x-y", "bytes=5-2", "bytes=-", "bytes=" + "0-0," * 200]
)
def test_a_range_that_makes_no_sense_is_ignored(service, here, wanted):
    answer = service.http.get(f"{here}/checkpoint", headers={"Range": wanted})

    assert answer.status_code == 200
    assert answer.content == MODEL


@pytest.mark.parametrize("path", ROUTES)
def test_a_known_file_is_not_sent_again(service, here, path):
    etag = service.http.get(f"{here}/{path}").headers["etag"]

    answer = service.http.get(f"{here}/{path}", headers={"If-None-Match": etag})

    assert answer.status_code == 304
    assert answer.content == b""


def test_the_report_is_json_of_the_documented_form(service, here):
    answer = service.http.get(f"{here}/report")

    assert answer.headers["content-type"] == "application/json"
    report = Report.model_validate_json(answer.content)
    assert report.output.files[0].sha256 == SHA256.hexdigest()
    assert service.http.get(f"{here}/files/report.json").content == answer.content


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html;q=0.5, application/json"])
def test_a_report_is_given_to_whoever_takes_json(service, here, accept):
    assert service.http.get(f"{here}/report", headers={"Accept": accept}).status_code == 200


@pytest.mark.parametrize("accept", ["image/png", "text/html;q=0, application/json;q=0"])
def test_a_report_in_another_format_is_refused(service, here, accept):
    answer = service.http.get(f"{here}/report", headers={"Accept": accept})

    assert_problem(answer, 406, "not-acceptable")
    assert answer.headers["vary"] == "Accept"


@pytest.mark.parametrize(
    "filename", ["nothing.safetensors", "..", "..%2f..%2fjob.json", "job.json", ".", "a" * 128, "%00"]
)
def test_an_unknown_file_is_not_found(service, here, filename):
    answer = service.raw(
        f"GET {here}/files/{filename} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )

    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"application/problem+json" in answer


@pytest.mark.parametrize("path", ROUTES)
def test_a_result_that_does_not_exist_yet_is_a_conflict_with_the_state(service, job, path):
    queued = service.http.get(f"/v1/jobs/{job}/{path}")
    assert int(queued.headers["retry-after"]) > 0
    assert "The job is queued;" in assert_problem(queued, 409, "no-result")["detail"]
    claim = service.jobs.claim(job, new_token("test"))
    running = service.http.get(f"/v1/jobs/{job}/{path}")
    assert "The job is running;" in assert_problem(running, 409, "no-result")["detail"]
    assert int(running.headers["retry-after"]) > 0
    service.jobs.fail(job, claim.fence, ProblemKind.WORKER_TROUBLE.problem("It broke."))
    failed = service.http.get(f"/v1/jobs/{job}/{path}")
    detail = assert_problem(failed, 410, "ended-without-result")["detail"]
    assert "The job is failed," in detail
    assert f"/v1/jobs/{job} " in detail
    assert "retry-after" not in failed.headers


@pytest.mark.parametrize("path", ROUTES)
def test_a_canceled_job_will_have_no_result(service, job, path):
    service.http.post(f"/v1/jobs/{job}/cancel")

    refused = service.http.get(f"/v1/jobs/{job}/{path}", params={"wait": 30})

    assert "The job is canceled," in assert_problem(refused, 410, "ended-without-result")["detail"]


@pytest.mark.parametrize("path", ROUTES)
def test_waiting_for_a_result_ends_with_the_job_and_not_with_its_start(service, job, path):
    answers = []

    def wait():
        answers.append(service.http.get(f"/v1/jobs/{job}/{path}", params={"wait": 30}))

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.2)
    claim = service.jobs.claim(job, new_token("test"))
    time.sleep(0.6)
    assert answers == []
    service.publish(job, claim, {"model.safetensors": MODEL})
    waiter.join(10)

    assert answers[0].status_code == 200


def test_a_wait_for_a_result_that_makes_no_sense_is_refused(service, job):
    refused = service.http.get(f"/v1/jobs/{job}/checkpoint", params={"wait": "-1"})

    assert assert_problem(refused, 422, "invalid-request")["errors"][0]["pointer"] == "/query/wait"


@pytest.mark.parametrize("end", ["cancel", "succeed", "succeed in shards", "fail"])
def test_the_lines_of_the_readme_end_with_the_job(service, job, end, tmp_path):
    page = (Path(__file__).parents[3] / "README.md").read_text()
    lines = next(block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "?wait=" in block)
    script = re.sub(r"^job=.*$", f"job={service.url}/v1/jobs/{job}", lines, flags=re.MULTILINE)
    shell = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, stdout=subprocess.PIPE)
    time.sleep(0.3)
    assert shell.poll() is None
    if end == "cancel":
        service.http.post(f"/v1/jobs/{job}/cancel")
    elif end == "succeed":
        service.finish(job, {"model.safetensors": MODEL})
    elif end == "succeed in shards":
        service.finish(job, sharded_set(2))
    else:
        claim = service.jobs.claim(job, new_token("test"))
        service.jobs.fail(job, claim.fence, ProblemKind.WORKER_TROUBLE.problem("It broke."))
    said, _ = shell.communicate(timeout=20)

    fetched = tmp_path / "compressed.safetensors"
    if end == "succeed":
        assert fetched.read_bytes() == MODEL
        assert json.loads(said)["job_id"] == job
    else:
        assert not fetched.exists() or fetched.read_bytes() == b""
        if end == "succeed in shards":
            assert json.loads(said)["job_id"] == job
        else:
            assert json.loads(said)["type"] == "urn:eckart:problem:ended-without-result"


def test_one_shard_with_an_index_is_one_file(service, job):
    shard, index = sharded_set(1)
    service.finish(job, sharded_set(1))

    assert service.http.get(f"/v1/jobs/{job}/checkpoint").content == sharded_set(1)[shard]
    assert service.http.get(f"/v1/jobs/{job}/files/{index}").content == sharded_set(1)[index]


def test_a_sharded_result_is_fetched_file_by_file(service, job):
    files = sharded_set(2)
    service.finish(job, files)

    refused = service.http.get(f"/v1/jobs/{job}/checkpoint")

    detail = assert_problem(refused, 404, "sharded-result")["detail"]
    assert f"/v1/jobs/{job}/archive" in detail
    assert f"/v1/jobs/{job}/files/" in detail
    for name, content in files.items():
        assert service.http.get(f"/v1/jobs/{job}/files/{name}").content == content


def test_a_file_of_another_attempt_is_never_served(service, job):
    first = service.jobs.claim(job, new_token("slow"))
    stray = service.data_dir / "jobs" / job / f"result-{first.fence}"
    stray.mkdir(parents=True)
    (stray / "model.safetensors").write_bytes(b"half")
    service.jobs.retry(job, first.fence, ProblemKind.WORKER_LOST.problem("Lost."))
    service.finish(job, {"model.safetensors": MODEL})

    assert service.http.get(f"/v1/jobs/{job}/checkpoint").content == MODEL


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("seen", [False, True])
def test_a_job_that_is_deleted_while_its_file_is_asked_for_is_not_found(service, here, path, seen):
    """The files are deleted after the record was read."""
    if seen:
        assert service.http.get(f"{here}/report").status_code == 200
    shutil.rmtree(service.data_dir / "jobs" / here.rpartition("/")[2])

    assert_problem(service.http.get(f"{here}/{path}"), 404, "job-not-found")


@pytest.mark.parametrize("size_bytes", [1000, len(MODEL) + 1])
def test_a_file_that_is_not_as_long_as_it_was_written_is_not_sent(service, here, size_bytes):
    (found,) = service.data_dir.glob(f"jobs/{here[9:]}/result-*/model.safetensors")
    os.truncate(found, size_bytes)
    for path in ("checkpoint", "files/model.safetensors", "archive"):
        for headers in ({}, {"Range": "bytes=0-9"}):
            problem = assert_problem(
                service.http.get(f"{here}/{path}", headers=headers), 500, "result-damaged"
            )
            assert (
                f"has {size_bytes} bytes on the disk, but was written with {len(MODEL)}" in problem["detail"]
            )
    assert service.http.head(f"{here}/checkpoint").status_code == 500
    assert service.http.get(f"{here}/report").status_code == 200
