"""`service.webhooks.delivery`: the end of a job is told at least once, whatever fails in between."""

import asyncio
import base64
import json
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest

from schemas.problem import ProblemKind
from service.webhooks.delivery import AT_ONCE_PER_HOST, PAUSES_S, WebhookDelivery, message
from service.webhooks.hosts import WebhookHosts
from service.webhooks.secrets import WebhookSecrets
from service.webhooks.sender import MOST_BODY_BYTES, WebhookSender
from state.data_dir import DataDir
from state.jobs.records import NewJob, StoredWebhook, new_token
from state.jobs.webhooks import WebhookFiles
from tests.service.files import FILES, MODEL
from tests.service.receiver import SECRET, Receiver, receiving
from tests.service.running import SPEC, assert_problem, until


@contextmanager
def receiver_of(start, *statuses, **options):
    """Run a receiver and a service that may send to it."""
    with receiving(Receiver(*statuses, **options)) as receiver:
        receiver.url = f"http://127.0.0.1:{receiver.port}/hook?token=hidden"
        receiver.settings = {
            "webhook_hosts": f"http://127.0.0.1:{receiver.port}",
            "webhook_secret": SECRET,
        }
        yield receiver, start(**receiver.settings)


def submit(service, url, **headers):
    body = {"checkpoint": service.stored(MODEL), "spec": SPEC, "webhook": {"url": url}}
    return service.http.post("/v1/jobs", json=body, headers=headers)


def deliveries(service, job_id):
    return service.http.get(f"/v1/jobs/{job_id}").json()["webhook"]["deliveries"]


def marks(service):
    return WebhookFiles(DataDir(service.data_dir)).marked()


def let_pauses_pass(service, job_id):
    """Make the next attempt due now, as if the pause before it had passed."""
    path = DataDir(service.data_dir).deliveries(job_id)
    document = json.loads(path.read_text())
    document["deliveries"][-1]["next_at"] = document["deliveries"][-1]["at"]
    path.write_text(json.dumps(document))


def test_the_end_of_a_job_is_told(start):
    with receiver_of(start, 204) as (receiver, service):
        job = submit(service, receiver.url).json()
        assert job["webhook"] == {
            "url": f"http://127.0.0.1:{receiver.port}/hook",
            "events": ["job.ended"],
            "deliveries": [],
        }
        service.finish(job["id"], FILES)
        assert receiver.arrived.acquire(timeout=20)
        until(lambda: deliveries(service, job["id"]))
        (delivery,) = deliveries(service, job["id"])
        until(lambda: not marks(service))
        shown = service.http.get(f"/v1/jobs/{job['id']}").json()
        counted = service.http.get("/metrics").text
    assert receiver.messages == [
        {
            "type": "job.ended",
            "timestamp": shown["finished_at"],
            "data": {"id": job["id"], "state": "succeeded", "links": shown["links"]},
        }
    ]
    assert receiver.ids == [delivery["message"]]
    assert (delivery["attempt"], delivery["status"]) == (1, 204)
    assert delivery["error"] is delivery["next_at"] is None
    assert "hidden" not in json.dumps(shown)
    assert 'eckart_webhook_attempts_total{outcome="delivered"} 1.0' in counted


def test_a_failed_attempt_is_repeated_across_a_restart_of_api_and_redis(start, redis_server):
    with receiver_of(start, 503, 204) as (receiver, service):
        job_id = submit(service, receiver.url).json()["id"]
        service.jobs.cancel(job_id)
        until(lambda: deliveries(service, job_id))
        (first,) = deliveries(service, job_id)
        assert first["status"] == 503
        assert first["next_at"] > first["at"]
        service.__exit__()
        redis_server.wipe()
        let_pauses_pass(service, job_id)
        again = start(**receiver.settings)
        until(lambda: len(deliveries(again, job_id)) == 2)
        until(lambda: not marks(again))
    assert receiver.ids[0] == receiver.ids[1]
    assert receiver.messages[0] == receiver.messages[1]
    assert receiver.messages[0]["data"]["state"] == "canceled"


def test_an_end_while_the_api_is_down_is_told_after_its_start(start):
    with receiver_of(start, 204) as (receiver, service):
        job_id = submit(service, receiver.url).json()["id"]
        service.__exit__()
        service.jobs.cancel(job_id)
        start(**receiver.settings)
        assert receiver.arrived.acquire(timeout=20)


def test_a_resumed_job_tells_each_of_its_ends(start):
    with receiver_of(start, 204) as (receiver, service):
        job_id = submit(service, receiver.url).json()["id"]
        kind = ProblemKind.WORKER_TROUBLE
        claim = service.jobs.claim(job_id, new_token("test"))
        service.jobs.fail(job_id, claim.fence, kind.problem(kind.text(error="MemoryError")))
        until(lambda: receiver.messages and not marks(service))
        assert service.http.post(f"/v1/jobs/{job_id}/resume").status_code == 202
        service.finish(job_id, FILES)
        until(lambda: len(deliveries(service, job_id)) == 2)
    assert [each["data"]["state"] for each in receiver.messages] == ["failed", "succeeded"]
    assert len(set(receiver.ids)) == 2


def test_the_links_lead_back_through_the_proxy_of_the_submission(start):
    with receiver_of(start, 204) as (receiver, service):
        job_id = submit(service, receiver.url, **{"X-Forwarded-Prefix": "/eckart"}).json()["id"]
        service.jobs.cancel(job_id)
        assert receiver.arrived.acquire(timeout=20)
    assert receiver.messages[0]["data"]["links"]["self"] == f"/eckart/v1/jobs/{job_id}"


def test_a_deleted_job_tells_nothing(start):
    with receiver_of(start, 503) as (receiver, service):
        job_id = submit(service, receiver.url).json()["id"]
        service.jobs.cancel(job_id)
        until(lambda: deliveries(service, job_id))
        service.http.delete(f"/v1/jobs/{job_id}")
        assert marks(service) == []
        assert not DataDir(service.data_dir).job(job_id).exists()


def test_a_webhook_in_a_form_is_the_same(start):
    with receiver_of(start, 204) as (receiver, service):
        parts = [("checkpoint", ("model.safetensors", MODEL))]
        data = {"spec": json.dumps(SPEC), "webhook": json.dumps({"url": receiver.url})}
        job = service.http.post("/v1/jobs", files=parts, data=data).json()
        assert job["webhook"]["events"] == ["job.ended"]
        service.jobs.cancel(job["id"])
        assert receiver.arrived.acquire(timeout=20)


def test_a_key_repeats_the_job_and_its_webhook_only(start):
    with receiver_of(start, 204) as (receiver, service):
        checkpoint = service.stored(MODEL)

        def post(url):
            body = {"checkpoint": checkpoint, "spec": SPEC, "webhook": {"url": url}}
            return service.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"})

        first, second = post(receiver.url), post(receiver.url)
        assert first.json()["id"] == second.json()["id"]
        assert marks(service) == [first.json()["id"]]
        assert_problem(post(receiver.url + "2"), 422, "idempotency-mismatch")
        assert marks(service) == [first.json()["id"]]


REFUSED = [
    ({"url": "https://127.0.0.1/"}, "invalid-webhook", "/webhook/url"),
    ({"url": "http://localhost:9/"}, "invalid-webhook", "/webhook/url"),
    ({"url": "no url"}, "invalid-webhook", "/webhook/url"),
    ({"url": "https://" + "a" * 3000}, "invalid-spec", "/webhook/url"),
    ({"url": "https://hooks.example.com/", "events": ["job.born"]}, "invalid-spec", "/webhook/events/0"),
    ({"url": "https://hooks.example.com/", "events": []}, "invalid-spec", "/webhook/events"),
    ({"url": "https://hooks.example.com/", "method": "GET"}, "invalid-spec", "/webhook/method"),
    ({}, "invalid-spec", "/webhook/url"),
]


def test_each_owner_has_a_secret_of_its_own(start):
    """Each receiver verifies with its own secret, and takes nothing that another owner could have signed."""
    secrets = {name: f"whsec_{base64.b64encode(name.encode() * 8).decode()}" for name in ("alice", "bob")}
    receivers = {name: Receiver(204, secret=secret) for name, secret in secrets.items()}
    with receiving(receivers["alice"]), receiving(receivers["bob"]):
        service = start(
            api_keys="alice:of-alice,bob:of-bob,carol:of-carol",
            webhook_hosts=", ".join(f"http://127.0.0.1:{each.port}" for each in receivers.values()),
            webhook_secret=",".join(f"{name}:{secret}" for name, secret in secrets.items()),
        )
        for name in ("alice", "bob", "carol"):
            key = {"X-API-Key": f"of-{name}"}
            service.http.put("/v1/checkpoints/m/model.safetensors", content=MODEL, headers=key)
            receiver = receivers.get(name, receivers["bob"])
            webhook = {"url": f"http://127.0.0.1:{receiver.port}/"}
            body = {"checkpoint": "m", "spec": SPEC, "webhook": webhook}
            answer = service.http.post("/v1/jobs", json=body, headers=key)
            if name == "carol":  # nothing would sign it
                refused = assert_problem(answer, 422, "invalid-webhook")
                assert refused["errors"][0]["pointer"] == "/webhook/url"
                continue
            service.finish(answer.json()["id"], FILES)
            assert receiver.arrived.acquire(timeout=30)
            assert receiver.messages[0]["data"]["id"] == answer.json()["id"]


def test_a_webhook_that_cannot_work_is_refused_with_a_pointer(start):
    service = start(webhook_hosts="hooks.example.com, http://localhost:9", webhook_secret=SECRET)
    checkpoint = service.stored(MODEL)
    for webhook, slug, pointer in REFUSED:
        body = {"checkpoint": checkpoint, "spec": SPEC, "webhook": webhook}
        problem = assert_problem(service.http.post("/v1/jobs", json=body), 422, slug)
        assert pointer in [each["pointer"] for each in problem["errors"]]
        parts = [("checkpoint", ("model.safetensors", MODEL))]
        data = {"spec": json.dumps(SPEC), "webhook": json.dumps(webhook)}
        answer = service.http.post("/v1/jobs", files=parts, data=data)
        problem = assert_problem(answer, 422, "invalid-webhook")
        assert pointer.removeprefix("/webhook") in [each["pointer"] for each in problem["errors"]]
    twice = [("webhook", (None, b'{"url": "https://hooks.example.com/"}'))] * 2
    assert_problem(service.http.post("/v1/jobs", files=twice), 422, "invalid-multipart")
    assert marks(service) == []
    assert service.http.get("/v1/jobs").json()["jobs"] == []
    assert service.leftovers() == []


def test_without_the_setting_a_webhook_is_refused(service, stored):
    body = {"checkpoint": stored, "spec": SPEC, "webhook": {"url": "https://hooks.example.com/"}}
    problem = assert_problem(service.http.post("/v1/jobs", json=body), 422, "invalid-webhook")
    assert "ECKART_WEBHOOK_HOSTS" in problem["detail"]


# What follows runs the delivery alone, on the stores of a service that sends nothing.


class Alone:
    """A delivery with pauses of a test's choice."""

    def __init__(self, service, receivers, pauses_s=(0.0, 0.0)):
        setting = ",".join(f"http://127.0.0.1:{each.port}" for each in receivers)
        self.files = WebhookFiles(DataDir(service.data_dir))
        self.service = service
        self.counted = []
        sender = WebhookSender(WebhookHosts(setting), WebhookSecrets(SECRET))
        self.delivery = WebhookDelivery(
            service.jobs, self.files, sender, count=self.counted.append, pauses_s=pauses_s
        )

    def ended(self, receiver):
        """Create a job that tells a receiver its end, and end it."""
        job_id = self.created(receiver)
        self.service.jobs.cancel(job_id)
        return job_id

    def created(self, receiver):
        webhook = StoredWebhook(url=f"http://127.0.0.1:{receiver.port}/", events=("job.ended",))
        return self.service.jobs.create(NewJob(checkpoint="m", spec=SPEC, webhook=webhook)).id

    def run_until(self, holds):
        """Deliver until something holds."""

        async def deliver():
            task = asyncio.create_task(self.delivery.run())
            try:
                async with asyncio.timeout(30):
                    while not holds():
                        await asyncio.sleep(0.01)
                        assert not task.done()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        asyncio.run(deliver())


@pytest.fixture
def alone(start, monkeypatch):
    monkeypatch.setattr("service.webhooks.delivery.LOOK_EVERY_S", 0.01)
    service = start()
    service.stored(MODEL)
    return lambda *receivers, **options: Alone(service, receivers, **options)


def test_attempts_end_after_the_last_pause(alone):
    with receiving(Receiver(500)) as receiver:
        delivery = alone(receiver)
        job_id = delivery.ended(receiver)
        delivery.run_until(lambda: not delivery.files.marked())
    tried = delivery.files.deliveries(job_id)
    assert [each.attempt for each in tried] == [1, 2, 3]
    assert [each.next_at is None for each in tried] == [False, False, True]
    assert delivery.counted == ["failed"] * 3
    assert len(set(receiver.ids)) == 1


def test_a_receiver_that_is_gone_is_asked_no_more(alone):
    with receiving(Receiver(410)) as receiver:
        delivery = alone(receiver)
        job_id = delivery.ended(receiver)
        delivery.run_until(lambda: not delivery.files.marked())
    (only,) = delivery.files.deliveries(job_id)
    assert (only.status, only.next_at) == (410, None)


def test_a_slow_receiver_hinders_no_other(alone):
    slow, quick = Receiver(204, hold=threading.Event()), Receiver(204)
    with receiving(slow), receiving(quick):
        delivery = alone(slow, quick)
        for _ in range(AT_ONCE_PER_HOST + 3):
            delivery.ended(slow)
        jobs = [delivery.ended(quick) for _ in range(10)]
        delivery.run_until(lambda: all(map(delivery.files.deliveries, jobs)))
        assert len(slow.messages) <= AT_ONCE_PER_HOST
        slow.hold.set()
        # Attempts that a stop of the API broke off are repeated.
        again = alone(slow, quick)
        again.run_until(lambda: not again.files.marked())
    assert len(set(slow.ids)) == AT_ONCE_PER_HOST + 3


def test_a_host_that_is_no_longer_allowed_gets_nothing(alone):
    with receiving(Receiver(204)) as receiver, receiving(Receiver(204)) as other:
        delivery = alone(other)
        job_id = delivery.ended(receiver)
        delivery.run_until(lambda: not delivery.files.marked())
    assert receiver.messages == []
    assert "may not go" in delivery.files.deliveries(job_id)[0].error


def test_one_process_delivers_at_a_time(alone):
    with receiving(Receiver(204)) as receiver:
        delivery, other = alone(receiver), alone(receiver)
        with delivery.files.lock():
            job_id = delivery.ended(receiver)
            with pytest.raises(TimeoutError):
                asyncio.run(asyncio.wait_for(other.delivery.run(), 0.3))
            assert receiver.messages == []
        other.run_until(lambda: other.files.deliveries(job_id))


def test_a_mark_without_a_job_is_removed_after_a_while(alone, monkeypatch):
    delivery = alone()
    delivery.files.mark("J" + "0" * 32)
    assert delivery.delivery.due() == []
    assert delivery.files.marked()
    monkeypatch.setattr("service.webhooks.delivery.ORPHANED_AFTER_S", -1.0)
    monkeypatch.setattr("service.webhooks.delivery.LATER_S", -1.0)
    delivery = alone()
    assert delivery.delivery.due() == []
    assert delivery.files.marked() == []


def test_an_unfinished_job_is_not_read(alone):
    with receiving(Receiver(204)) as receiver:
        delivery = alone(receiver)
        job_id = delivery.created(receiver)
        assert delivery.service.jobs.not_known_unfinished([job_id]) == []
        assert delivery.delivery.due() == []
        delivery.service.jobs.cancel(job_id)
        (due,) = delivery.delivery.due()
    assert len(due.body) < 1000 < MOST_BODY_BYTES


def test_attempts_go_on_for_a_day_and_more():
    assert PAUSES_S[0] == 5
    assert list(PAUSES_S) == sorted(PAUSES_S)
    assert 24 * 3600 < sum(PAUSES_S) < 48 * 3600


def test_a_message_stays_thin(service, stored):
    view = service.jobs.view(service.submit(stored).json()["id"])
    webhook = StoredWebhook(url="https://a" + "a" * 2000, events=("job.ended",), root_path="/" + "r" * 254)
    view = replace(view, record=view.record.model_copy(update={"webhook": webhook}))
    assert len(message(view)) < 5000
