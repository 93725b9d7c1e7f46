"""service/jobs/archive.py: all files of a result as one tar, of known size, whole or from any byte on."""

import io
import os
import shutil
import subprocess
import tarfile

import pytest

from service.jobs.archive import make_archive
from service.jobs.results import ResultFile
from state.data_dir import DataDir
from tests.service.files import checkpoint_bytes
from tests.service.running import assert_problem

LONG_NAME = "tokenizer-" + "x" * 100 + ".json"
CONTENT = {
    "eckart.safetensors": checkpoint_bytes({"a.weight": (64, 64)}),
    "config.json": b'{"model_type": "bert"}\n',
    "empty.txt": b"",
    "block.txt": b"b" * 512,
    LONG_NAME: b"{}",
}
FINISHED_AT = "2026-01-02T03:04:05.000000Z"


@pytest.fixture(scope="module")
def here(_service):
    job = _service.submit(_service.stored(checkpoint_bytes())).json()["id"]
    _service.finish(job, CONTENT)
    return f"/v1/jobs/{job}"


def members(content):
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def test_it_holds_all_files_and_the_report_and_is_as_long_as_it_says(service, here):
    answer = service.http.get(f"{here}/archive")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-tar"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert "content-encoding" not in answer.headers
    job_id = here.rpartition("/")[2]
    assert answer.headers["content-disposition"] == f'attachment; filename="{job_id}.tar"'
    found = members(answer.content)
    assert found.pop("report.json") == service.http.get(f"{here}/report").content
    assert found == CONTENT
    assert service.http.get(here).json()["links"]["archive"] == f"{here}/archive"


def test_tar_unpacks_it_from_a_pipe(service, here, tmp_path):
    if shutil.which("tar") is None:
        pytest.skip("no tar here")
    content = service.http.get(f"{here}/archive").content
    subprocess.run(["tar", "xf", "-", "-C", str(tmp_path)], input=content, check=True)
    assert {
        path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "report.json"
    } == CONTENT


def test_a_head_says_the_same_without_the_body(service, here):
    head, get = service.http.head(f"{here}/archive"), service.http.get(f"{here}/archive")

    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "etag", "content-type", "accept-ranges", "content-disposition"):
        assert head.headers[name] == get.headers[name]


def test_a_client_that_has_it_gets_no_body(service, here):
    etag = service.http.get(f"{here}/archive").headers["etag"]
    answer = service.http.get(f"{here}/archive", headers={"If-None-Match": etag})
    assert (answer.status_code, answer.content) == (304, b"")


@pytest.mark.parametrize("begin", [0, 1, 511, 512, 700, 17_000, 18_000])
def test_a_broken_download_goes_on_at_any_byte(service, here, begin):
    whole = service.http.get(f"{here}/archive")
    headers = {"Range": f"bytes={begin}-", "If-Range": whole.headers["etag"]}
    rest = service.http.get(f"{here}/archive", headers=headers)

    assert rest.status_code == (206 if begin else 200)
    assert rest.content == whole.content[begin:]
    if begin:
        size = len(whole.content)
        assert rest.headers["content-range"] == f"bytes {begin}-{size - 1}/{size}"


def test_other_ranges(service, here):
    whole = service.http.get(f"{here}/archive").content

    def get(asked, **headers):
        return service.http.get(f"{here}/archive", headers={"Range": asked, **headers})

    assert get("bytes=600-700").content == whole[600:701]
    assert get("bytes=-5").content == whole[-5:]
    assert get("bytes=0-1,900-901").content == whole
    assert get("nonsense").content == whole
    assert get("bytes=5-", **{"If-Range": '"of another job"'}).content == whole
    problem = get(f"bytes={len(whole)}-")
    assert_problem(problem, 416, "range-not-satisfiable")
    assert problem.headers["content-range"] == f"bytes */{len(whole)}"


def test_there_is_none_before_the_end_and_none_of_a_canceled_job(service):
    job = service.submit(service.stored(checkpoint_bytes())).json()["id"]
    assert_problem(service.http.get(f"/v1/jobs/{job}/archive"), 409, "no-result")
    service.http.post(f"/v1/jobs/{job}/cancel")
    assert_problem(service.http.get(f"/v1/jobs/{job}/archive"), 410, "ended-without-result")
    assert service.http.get("/v1/jobs/J0/archive").status_code == 404


def test_a_job_that_is_deleted_meanwhile_is_not_found(service):
    job = service.submit(service.stored(checkpoint_bytes())).json()["id"]
    service.finish(job, CONTENT)
    record = service.jobs.get(job)
    shutil.rmtree(DataDir(service.data_dir).result(job, record.result_fence))
    assert_problem(service.http.get(f"/v1/jobs/{job}/archive"), 404, "job-not-found")


def test_a_file_beyond_eight_gigabytes_keeps_the_archive_readable(tmp_path):
    path, size_bytes = tmp_path / "model.safetensors", 9 * 2**30
    with path.open("wb") as file:
        os.truncate(file.fileno(), size_bytes)  # a sparse file, which takes no space
        file.seek(size_bytes - 3)
        file.write(b"end")
    archive = make_archive([ResultFile(path, "0" * 64, path.stat())], FINISHED_AT)

    header = b"".join(archive.read(0, 4 * 512))
    info = tarfile.open(fileobj=io.BytesIO(header + bytes(1024))).next()  # noqa: SIM115 - closed with its bytes
    assert (info.name, info.size) == ("model.safetensors", size_bytes)
    assert archive.size_bytes == info.offset_data + size_bytes + 1024
    end = info.offset_data + size_bytes
    assert b"".join(archive.read(end - 5, end + 2)) == b"\0\0end\0\0"


def test_the_same_files_make_the_same_archive_and_others_another_tag(tmp_path):
    def archive(name="a.txt", content=b"x", sha256="0" * 64, at=FINISHED_AT):
        path = tmp_path / name
        path.write_bytes(content)
        made = make_archive([ResultFile(path, sha256, path.stat())], at)
        return made.etag, b"".join(made.read(0, made.size_bytes))

    first = archive()
    assert archive() == first
    others = [archive("b.txt"), archive(content=b"xy"), archive(sha256="1" * 64)]
    others.append(archive(at="2026-01-02T03:04:06.000000Z"))
    assert len({first[0], *(etag for etag, _ in others)}) == 5


@pytest.mark.parametrize("name", ["config.json", "empty.txt", LONG_NAME])
def test_a_companion_comes_by_itself_too_and_as_an_attachment(service, here, name):
    answer = service.http.get(f"{here}/files/{name}")
    assert (answer.status_code, answer.content) == (200, CONTENT[name])
    assert answer.headers["content-disposition"].startswith("attachment")
