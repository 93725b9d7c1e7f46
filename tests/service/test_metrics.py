"""`service.metrics`: requests, bytes, jobs and disk space are counted."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.service.files import checkpoint_bytes

MODEL = checkpoint_bytes()
PAGE = Path(__file__).parents[2] / "docs" / "5-operations.md"


def samples(service):
    text = service.http.get("/metrics").text
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


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
    assert counted["eckart_redis_used_bytes",] > 100_000
    assert counted["eckart_redis_limit_bytes",] == 0


def test_the_page_for_operators_names_all_metrics_and_no_others(service):
    text, page = service.http.get("/metrics").text, PAGE.read_text()
    families = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    named = set(re.findall(r"\b(?:eckart|http)_[a-z_]+\b", page))

    assert {name.removesuffix("_count") for name in named} == {
        name for name in families if not name.endswith("_created")
    }


def test_an_alert_of_the_page_selects_by_labels_that_there_are(service):
    text = service.http.get("/metrics").text
    selectors = re.findall(r"\b(\w+\{\w+=\"[^\"]+\"\})", PAGE.read_text())

    assert len(selectors) == 2
    assert [each for each in selectors if each not in text] == []
