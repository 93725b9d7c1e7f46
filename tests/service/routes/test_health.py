"""`service.routes.health`: liveness, readiness, the first page."""

import time

from tests.service.files import checkpoint_bytes
from tests.service.running import assert_problem, until

MODEL = checkpoint_bytes()


def test_the_process_is_alive_without_redis_and_disk_space(start):
    service = start(redis_url="redis://127.0.0.1:1/0", min_free_bytes=2**60)

    assert service.http.get("/livez").json() == {"status": "ok"}


def test_readiness_names_all_that_is_missing(start):
    service = start(min_free_bytes=2**60)
    service.jobs.counts()  # what there is to restore is restored

    missing = assert_problem(service.http.get("/readyz"), 503, "not-ready")

    assert [part["pointer"] for part in missing["errors"]] == ["/workers", "/disk"]
    assert "workers, disk" in missing["detail"]


def test_a_service_with_a_worker_is_ready(start):
    service = start()
    service.jobs.counts()
    service.workers.refresh("w1", 30)

    assert service.http.get("/readyz").json() == {"status": "ok", "warnings": []}


def test_a_running_restore_is_shown_with_the_jobs_so_far(start, redis_server):
    service = start(reaper_s=10_000)
    service.workers.refresh("w1", 30)
    service.submit(service.stored(MODEL))
    client = redis_server.client()
    client.set("eckart:restoring", "another process")
    missing = assert_problem(service.http.get("/readyz"), 503, "not-ready")["errors"]
    client.delete("eckart:restoring")

    assert [part["pointer"] for part in missing] == ["/jobs"]
    assert "1 so far" in missing[0]["detail"]
    assert service.http.get("/readyz").status_code == 200


def test_a_redis_that_evicts_keys_is_named_by_readiness_and_once_in_the_log(redis_server, start, caplog):
    redis_server.client().config_set("maxmemory-policy", "allkeys-lru")
    try:
        service = start(reaper_s=0.05)
        service.workers.refresh("w1", 30)
        until(lambda: "maxmemory-policy" in caplog.text)
        time.sleep(0.3)
        ready = service.http.get("/readyz")
    finally:
        redis_server.client().config_set("maxmemory-policy", "noeviction")

    assert ready.status_code == 200
    (warning,) = ready.json()["warnings"]
    assert "allkeys-lru" in warning
    assert [record.getMessage() for record in caplog.records].count(warning) == 1


def test_a_worker_that_has_fallen_silent_does_not_count(start):
    service = start()
    service.workers.refresh("w1", 0)

    assert service.http.get("/readyz").status_code == 503


def test_a_head_is_a_get_without_its_body(service):
    stored = service.stored(MODEL)
    for path in ("/livez", "/readyz", f"/v1/checkpoints/{stored}", "/v1/checkpoints/nobody"):
        head, get = service.http.head(path), service.http.get(path)
        assert head.status_code == get.status_code
        assert head.content == b""
        assert head.headers["content-length"] == get.headers["content-length"]
