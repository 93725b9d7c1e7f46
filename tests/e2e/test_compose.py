"""The images, run by docker compose: a job over the published port, and what the containers may do."""

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from schemas.format.header_stream import read_header

ROOT = Path(__file__).parents[2]
SERVICES = ("redis", "service", "worker")

# The first build installs torch.
pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def output_of(*command, **options):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout.strip()


class Deployment:
    """A project of docker compose under a name and a port of its own."""

    def __init__(self):
        has_plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        self.command = ("docker", "compose") if has_plugin.returncode == 0 else ("docker-compose",)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        project = {"COMPOSE_PROJECT_NAME": f"eckart-test-{os.getpid()}", "ECKART_PORT": str(self.port)}
        self.environment = os.environ | project
        self.files = ["docker-compose.yml"]

    def with_keys(self, keys):
        """Start what differs with the keys of a file."""
        self.files.append("docker-compose.keys.yml")
        self.environment["ECKART_KEYS_FILE"] = str(keys)
        self.compose("up", "--detach")
        self.wait_until_ready()

    def compose(self, *arguments):
        files = [word for name in self.files for word in ("--file", name)]
        return output_of(*self.command, *files, *arguments, cwd=ROOT, env=self.environment)

    def container(self, service):
        return self.compose("ps", "--quiet", service)

    def inspect(self, service):
        stopped_too = self.compose("ps", "--all", "--quiet", service)
        return json.loads(output_of("docker", "inspect", stopped_too))[0]

    def run_in(self, service, *command):
        return output_of("docker", "exec", self.container(service), *command)

    def curl(self, *arguments):
        return output_of("curl", "--silent", "--show-error", "--fail-with-body", *arguments)

    def wait_until_ready(self, limit_s=180):
        deadline = time.monotonic() + limit_s
        while subprocess.run(
            ["curl", "-sf", f"{self.url}/readyz"], capture_output=True, check=False
        ).returncode:
            assert time.monotonic() < deadline, self.compose("logs", "--tail=50")
            time.sleep(0.5)

    def job(self, job):
        return json.loads(self.curl(self.url + job["links"]["self"]))

    def ended(self, job):
        deadline = time.monotonic() + 300
        while job["state"] in ("queued", "running"):
            assert time.monotonic() < deadline, job
            time.sleep(0.5)
            job = self.job(job)
        return job


@pytest.fixture(scope="module")
def deployment():
    deployment = Deployment()
    try:
        deployment.compose("up", "--build", "--detach")
        deployment.wait_until_ready()
        yield deployment
    finally:
        deployment.compose("down", "--volumes", "--remove-orphans")


@pytest.fixture(scope="module")
def job(deployment, minilm):
    form = ["-F", f"checkpoint=@{minilm}", "-F", 'spec={"method":"svd","rank":{"ratio":0.5}}']
    return deployment.ended(json.loads(deployment.curl(*form, f"{deployment.url}/v1/jobs")))


def test_a_job_over_the_published_port_succeeds(deployment, job, minilm, tmp_path):
    assert (job["state"], job["error"]) == ("succeeded", None)
    deployment.curl("-o", tmp_path / "small.safetensors", deployment.url + job["links"]["checkpoint"])
    before, after = read_header(minilm), read_header(tmp_path / "small.safetensors")
    assert after.file_bytes < before.file_bytes
    parameters = sum(tensor.parameters for tensor in after.tensors)
    report = json.loads(deployment.curl(deployment.url + job["links"]["report"]))
    assert report["totals"]["parameters_after"] == parameters
    assert report["totals"]["layers_factored"] >= 36


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_runs_as_nobody_special(deployment, service):
    assert deployment.run_in(service, "id", "-u") != "0"
    host = deployment.inspect(service)["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges:true" in host["SecurityOpt"]


def test_the_processes_of_a_container_are_not_root_either(deployment):
    for service in SERVICES:
        owners = deployment.run_in(service, "sh", "-c", "stat -c %u /proc/[0-9]*")
        assert "0" not in owners.split(), service


def test_only_the_service_is_published(deployment):
    published = {name: deployment.inspect(name)["NetworkSettings"]["Ports"] for name in SERVICES}
    assert {name for name, ports in published.items() if any(ports.values())} == {"service"}


def test_the_worker_and_redis_have_no_way_out(deployment):
    for name in ("redis", "worker"):
        (network,) = deployment.inspect(name)["NetworkSettings"]["Networks"]
        assert output_of("docker", "network", "inspect", "-f", "{{.Internal}}", network) == "true"


def test_the_service_image_has_no_torch(deployment):
    code = "from importlib.util import find_spec; print(find_spec('torch'))"
    assert deployment.run_in("service", "python", "-c", code) == "None"


def test_redis_asks_for_a_password_that_its_clients_read(deployment):
    ping = "REDISCLI_AUTH=$(cat /secrets/redis.password) redis-cli ping"
    assert deployment.run_in("redis", "sh", "-c", ping) == "PONG"
    assert deployment.run_in("redis", "redis-cli", "ping").startswith("NOAUTH")
    secrets = {name: deployment.run_in(name, "cat", "/secrets/redis.password") for name in SERVICES}
    assert len(set(secrets.values())) == 1
    assert len(secrets["redis"]) == 64


def test_nobody_else_reads_the_password(deployment):
    told = deployment.run_in("service", "sh", "-c", "stat -c '%a %g' /secrets /secrets/*")
    assert told.splitlines() == ["750 10001", "440 10001", "440 10001"]
    for name in SERVICES:
        assert "requirepass" not in json.dumps(deployment.inspect(name)["Config"])


def test_every_container_becomes_healthy(deployment):
    deadline = time.monotonic() + 120
    while {deployment.inspect(name)["State"]["Health"]["Status"] for name in SERVICES} != {"healthy"}:
        assert time.monotonic() < deadline, deployment.compose("ps")
        time.sleep(1)


def test_a_worker_that_dies_is_started_again(deployment):
    deployment.run_in("worker", "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)")
    deadline = time.monotonic() + 60
    while not deployment.inspect("worker")["RestartCount"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    deployment.wait_until_ready()


def test_jobs_outlive_a_graceful_stop(deployment, job):
    again = {"checkpoint": job["checkpoint"], "spec": {"method": "svd", "rank": {"ratio": 0.3}}}
    json_body = ["-H", "Content-Type: application/json", "-d", json.dumps(again)]
    under_way = json.loads(deployment.curl(*json_body, f"{deployment.url}/v1/jobs"))
    while not deployment.job(under_way)["progress"]["layers_done"]:
        time.sleep(0.1)
    deployment.compose("stop")
    killed = [name for name in SERVICES if deployment.inspect(name)["State"]["ExitCode"] == 137]
    assert killed == []
    deployment.compose("start")
    deployment.wait_until_ready()
    assert deployment.job(job)["state"] == "succeeded"
    deployment.curl("-o", os.devnull, deployment.url + job["links"]["checkpoint"])
    assert deployment.ended(under_way)["state"] == "succeeded"


# The last one: all others send no key.
def test_keys_from_a_file_are_needed_and_may_be_added(deployment, job, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("default:first-secret\n")
    keys.chmod(0o644)
    deployment.with_keys(keys)
    listed = f"{deployment.url}/v1/jobs"
    assert httpx.get(listed).status_code == 401
    known = json.loads(deployment.curl("-H", "Authorization: Bearer first-secret", listed))
    assert job["id"] in {each["id"] for each in known["jobs"]}

    with keys.open("a") as file:
        file.write("ann:second-secret\n")
    assert json.loads(deployment.curl("-H", "X-API-Key: second-secret", listed))["jobs"] == []
