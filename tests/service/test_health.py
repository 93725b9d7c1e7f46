"""Alive, ready, and counted."""

import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.server import WithoutProbes
from tests.service.files import checkpoint_bytes
from tests.service.running import assert_problem

MODEL = checkpoint_bytes()


def samples(service):
    text = service.http.get("/metrics").text
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_process_is_alive_whatever_is_missing(start):
    service = start(redis_url="redis://127.0.0.1:1/0", min_free_bytes=2**60)

    assert service.http.get("/livez").json() == {"status": "ok"}


def test_readiness_names_all_that_is_missing(start):
    service = start(min_free_bytes=2**60)

    missing = assert_problem(service.http.get("/readyz"), 503, "not-ready")

    assert [part["pointer"] for part in missing["errors"]] == ["/workers", "/disk"]
    assert "workers, disk" in missing["detail"]


def test_a_service_with_a_worker_is_ready(start):
    service = start()
    service.workers.beat("w1", 30)

    assert service.http.get("/readyz").json() == {"status": "ok"}


def test_a_worker_that_has_fallen_silent_does_not_count(start):
    service = start()
    service.workers.beat("w1", 0)

    assert service.http.get("/readyz").status_code == 503


def test_metrics_count_requests_by_route_and_not_by_address(service):
    labels = sorted(["/v1/checkpoints/{checkpoint_id}", "404", "GET"])
    counter = ("http_server_request_duration_seconds_count", *labels)
    before = samples(service).get(counter, 0)

    service.http.get("/v1/checkpoints/one")
    service.http.get("/v1/checkpoints/two")

    counted = samples(service)
    assert counted[counter] == before + 2
    assert not any("/v1/checkpoints/one" in labels for _, *labels in counted)


def test_metrics_count_bytes_jobs_and_room(start):
    service = start()
    stored = service.stored(MODEL)
    done, _ = (service.submit(stored).json()["id"] for _ in range(2))
    service.finish(done, {"model.safetensors": MODEL})

    counted = samples(service)

    assert counted["eckart_upload_bytes_total",] == len(MODEL)
    assert counted["eckart_jobs", "queued"] == 1
    assert counted["eckart_jobs", "succeeded"] == 1
    assert counted["eckart_jobs", "running"] == 0
    assert counted["eckart_job_queue_depth",] == 2
    assert counted["eckart_job_queue_oldest_seconds",] >= 0
    assert counted["eckart_disk_free_bytes",] > 0
    assert counted["eckart_workers",] == 0


def test_the_first_page_leads_to_the_documentation(service):
    assert service.http.get("/").headers["location"] == "/docs"
    assert service.http.get("/docs").status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_probes_stay_out_of_the_access_log(path):
    record = logging.LogRecord("uvicorn.access", 20, "", 0, "", ("a", "GET", f"{path}?x=1", "1.1", 200), None)
    other = logging.LogRecord("uvicorn.access", 20, "", 0, "", ("a", "GET", "/v1/jobs", "1.1", 200), None)

    assert WithoutProbes().filter(record) is False
    assert WithoutProbes().filter(other) is True


def test_a_head_is_a_get_without_its_body(service):
    stored = service.stored(MODEL)
    for path in ("/livez", "/readyz", f"/v1/checkpoints/{stored}", "/v1/checkpoints/nobody"):
        head, get = service.http.head(path), service.http.get(path)
        assert head.status_code == get.status_code
        assert head.content == b""
        assert head.headers["content-length"] == get.headers["content-length"]
