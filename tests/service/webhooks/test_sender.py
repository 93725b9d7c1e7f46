"""`service.webhooks.sender`: signed messages at a real receiver, and attacks on where they go."""

import asyncio
import json
import re
import ssl
import threading
from http.server import HTTPServer
from pathlib import Path

import pytest

from service.webhooks.hosts import WebhookHosts, WebhookRefused
from service.webhooks.secrets import WebhookSecrets
from service.webhooks.sender import Outcome, WebhookSender
from tests.service.receiver import SECRET, Receiver, receiving

OTHER = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = json.dumps({"type": "job.ended"}).encode()


def send(receiver, *, host="127.0.0.1", allow=None, resolve=None, secrets=SECRET, scheme="http", **options):
    setting = allow or f"{scheme}://127.0.0.1:{receiver.port}"
    hosts = WebhookHosts(setting, **({"resolve": resolve} if resolve else {}))
    sender = WebhookSender(hosts, WebhookSecrets(secrets), **options)
    return asyncio.run(sender.send(f"{scheme}://{host}:{receiver.port}/hook?a=1", "msg_1", BODY, owner=""))


@pytest.mark.parametrize("secrets", [SECRET, f"{OTHER} {SECRET}", f"{SECRET} {OTHER}"])
def test_the_reference_library_verifies_a_message(secrets):
    with receiving(Receiver(200)) as receiver:
        assert send(receiver, secrets=secrets) == Outcome(200, None)
    assert receiver.messages == [{"type": "job.ended"}]
    assert receiver.ids == ["msg_1"]


def test_a_message_signed_with_another_secret_is_not_verified():
    with receiving(Receiver(200)) as receiver:
        outcome = send(receiver, secrets=OTHER)
    assert outcome.error
    assert receiver.messages == []


def test_a_redirect_is_not_followed():
    with receiving(Receiver(204)) as inside:
        location = {"Location": f"http://127.0.0.1:{inside.port}/"}
        for status in (301, 302, 307, 308):
            with receiving(Receiver(status, headers=location)) as receiver:
                outcome = send(receiver)
            assert outcome.status == status
            assert "Redirects" in outcome.error
            assert not outcome.final
        assert inside.messages == []


@pytest.mark.parametrize(
    ("status", "final"), [(200, True), (204, True), (410, True), (400, False), (404, False), (503, False)]
)
def test_what_an_answer_means(status, final):
    with receiving(Receiver(status)) as receiver:
        outcome = send(receiver)
    assert (outcome.status, outcome.final) == (status, final)
    assert (outcome.error is None) == (status < 300)


def test_the_address_that_was_checked_is_the_one_that_is_connected_to():
    """A name whose address changes between two look-ups would lead inside if it were looked up twice."""
    answers = [["127.0.0.1"], ["10.0.0.1"]]
    with receiving(Receiver(204)) as receiver:
        outcome = send(
            receiver,
            host="hooks.example.com",
            allow=f"http://hooks.example.com:{receiver.port}, 127.0.0.1/32",
            resolve=lambda _host, _port: answers.pop(0),
        )
    assert outcome == Outcome(204, None)
    assert len(answers) == 1
    assert receiver.hosts == [f"hooks.example.com:{receiver.port}"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0"])
def test_a_name_that_leads_inside_after_the_submission_is_refused_at_delivery(address):
    answers = [["93.184.215.14"], [address]]
    with receiving(Receiver(204)) as receiver:
        hosts = WebhookHosts(f"http://hooks.example.com:{receiver.port}", lambda _host, _port: answers.pop(0))
        url = f"http://hooks.example.com:{receiver.port}/"
        hosts.require(url)
        outcome = asyncio.run(WebhookSender(hosts, WebhookSecrets(SECRET)).send(url, "msg_1", BODY, owner=""))
        with pytest.raises(WebhookRefused):
            hosts.target("http://127.0.0.1/")
    assert "not public" in outcome.error
    assert receiver.messages == []


def test_the_next_address_is_tried_where_one_does_not_answer():
    with receiving(Receiver(204)) as receiver:
        outcome = send(
            receiver,
            host="hooks.example.com",
            allow=f"http://hooks.example.com:{receiver.port}, 127.0.0.0/8, ::1/128",
            resolve=lambda _host, _port: ["::1", "127.0.0.1"],
        )
    assert outcome == Outcome(204, None)


def test_a_receiver_that_does_not_answer_is_left():
    with receiving(Receiver(204, hold=threading.Event())) as receiver:
        outcome = send(receiver, timeout_s=0.2)
    assert outcome == Outcome(None, "No answer within 0.2 s.")


def test_a_receiver_that_is_not_there_is_an_outcome():
    with receiving(Receiver(204)) as receiver:
        pass
    outcome = send(receiver)
    assert outcome.status is None
    assert "connection failed" in outcome.error


def test_a_name_without_an_address_is_an_outcome():
    def resolve(_host, _port):
        raise OSError("no such host")

    with receiving(Receiver(204)) as receiver:
        allow = f"http://hooks.example.com:{receiver.port}"
        outcome = send(receiver, host="hooks.example.com", allow=allow, resolve=resolve)
    assert "no such host" in outcome.error


def test_the_certificate_must_be_of_the_name_and_not_of_the_address(tmp_path):
    certificate = tmp_path / "certificate.pem"
    certificate.write_text(CERTIFICATE)
    trusted = ssl.create_default_context(cafile=str(certificate))
    for host, taken in (("hooks.example.com", True), ("other.example.com", False)):
        with receiving(Receiver(204), certificate) as receiver:
            outcome = send(
                receiver,
                host=host,
                scheme="https",
                allow=f"https://*.example.com:{receiver.port}, 127.0.0.1/32",
                resolve=lambda _host, _port: ["127.0.0.1"],
                certificates=trusted,
            )
        assert (outcome.error is None) == taken
        assert len(receiver.messages) == taken
    with receiving(Receiver(204), certificate) as receiver:
        assert "certificate" in send(receiver, scheme="https").error.lower()  # nobody known has signed it


def test_the_receiver_in_the_documentation_verifies_a_message(capsys):
    page = (Path(__file__).parents[3] / "docs" / "2-http.md").read_text()
    program = re.search(r"```python\n(from http.server.*?)HTTPServer\(\(.*?```", page, re.DOTALL)
    assert program is not None
    names = {}
    exec(program[1].replace("whsec_…", SECRET), names)
    body = b'{"type": "job.ended", "data": {"id": "J1", "state": "succeeded"}}'
    with HTTPServer(("127.0.0.1", 0), names["Receiver"]) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        hosts = WebhookHosts(f"http://127.0.0.1:{server.server_port}")
        url = f"http://127.0.0.1:{server.server_port}/"
        outcome = asyncio.run(WebhookSender(hosts, WebhookSecrets(SECRET)).send(url, "msg_1", body, owner=""))
        thread.join()
    assert outcome == Outcome(204, None)
    assert capsys.readouterr().out == "J1 succeeded\n"


# Of hooks.example.com, signed by itself, valid until 2126; its key protects nothing.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQguueJ14NdAO5W8iI0
Na06yeMtR55LcsRvdpEHekbatwyhRANCAARaxrZiykUEcPRQEwo5KNryPyHwP4a2
wPdP/UGNk89MrVSmRgS0gVt6ilDZdAZfwWbDSAnGBC4ZAs1sbBPZSLgB
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBrDCCAVOgAwIBAgIUTyuCQuyWn+t6UycinIPVdQspiTwwCgYIKoZIzj0EAwIw
HDEaMBgGA1UEAwwRaG9va3MuZXhhbXBsZS5jb20wIBcNMjYxMTI3MjI1NjQ0WhgP
MjEyNjExMDMyMjU2NDRaMBwxGjAYBgNVBAMMEWhvb2tzLmV4YW1wbGUuY29tMFkw
EwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEWsa2YspFBHD0UBMKOSja8j8h8D+GtsD3
T/1BjZPPTK1UpkYEtIFbeopQ2XQGX8Fmw0gJxgQuGQLNbGwT2Ui4AaNxMG8wHQYD
VR0OBBYEFKFZah+uQxVHASEOxp6NT9SymdyRMB8GA1UdIwQYMBaAFKFZah+uQxVH
ASEOxp6NT9SymdyRMA8GA1UdEwEB/wQFMAMBAf8wHAYDVR0RBBUwE4IRaG9va3Mu
ZXhhbXBsZS5jb20wCgYIKoZIzj0EAwIDRwAwRAIgPP6EMAIAmUtLrVut6TyZzK6+
nrNsCWxOlIrftwAC49kCIFhKPHZJ7Iik/yAEUwmOfNTkYDrmcGQ/7aAEaA6fOoze
-----END CERTIFICATE-----
"""
