"""Every verb of the command line: piped, on a terminal, as JSON, with wrong input, and without a service."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eckart.cli import build_parser, main
from tests.eckart.terminal import stderr_on_a_terminal

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"
needs_shtab = pytest.mark.skipif(find_spec("shtab") is None, reason="the extra `cli` is not installed")

# Each verb that ends, what its text shows, and what its JSON document has.
RUNS = [
    ("compress tiny.safetensors --rank 2", "job J1: svd", "totals"),
    ("plan my-model --rank 2", "plan for", "totals"),
    ("report J1", "job J1: svd", "totals"),
    ("compare J1 J2", "/method", "spec"),
    ("jobs", "J2: the file is cut", "jobs"),
    ("jobs --state failed --checkpoint my-model", "J2", "jobs"),
    ("checkpoints", "my-model", "checkpoints"),
    ("watch J1", "succeeded", "id"),
    ("watch J1 --out got", "got/report.json", "id"),
    ("cancel J1", "job J1 is succeeded", "id"),
    ("resume J1", "job J1 is succeeded", "id"),
    ("delete job J1", "deleted job J1", "deleted"),
    ("delete checkpoint my-model", "deleted checkpoint my-model", "deleted"),
    pytest.param("completion bash", "complete", "script", marks=needs_shtab),
]
WITH_SERVICE = [line for line, *_ in RUNS[:-1]]
VERBS = sorted(build_parser()._subparsers._group_actions[0].choices)


@pytest.fixture
def url(serve, service, layer, job, report, problem, tmp_path, monkeypatch):
    """Hold one job that succeeded and one that failed; check that the key comes with every request."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ECKART_API_KEY", "secret")
    monkeypatch.setenv("TERM", "xterm")
    save_file({"a.weight": torch.ones(8, 8)}, tmp_path / "tiny.safetensors")
    layers = [layer("a", shape=(8, 8), rank=2)]
    compressing, _ = service({"tiny.safetensors": b"smaller"}, layers=layers)
    failed = job("failed", id="J2", error=problem(detail="the file is cut"))
    other = report([layer("a", shape=(8, 8), rank=3, method="cx")], spec={"method": "cx", "rank": 3})
    stored = {
        "id": "my-model",
        "stored_at": "2026-01-02T03:04:05Z",
        "bytes": 256,
        "files": [],
        "complete": True,
    }
    answers = {
        ("GET", "/v1/jobs"): {"jobs": [job("succeeded"), failed], "next_cursor": None},
        ("GET", "/v1/checkpoints"): {"checkpoints": [stored], "next_cursor": None},
        ("GET", "/v1/jobs/J2/report"): other | {"job_id": "J2"},
        ("GET", "/v1/jobs/J2"): failed,
        ("POST", "/v1/jobs/J1/cancel"): job("succeeded"),
        ("POST", "/v1/jobs/J1/resume"): job("succeeded"),
        ("DELETE", "/v1/jobs/J1"): {},
        ("DELETE", "/v1/checkpoints/my-model"): {},
    }

    def respond(exchange):
        asked = (exchange.method, exchange.path)
        if exchange.headers["Authorization"] != "Bearer secret":
            exchange.answer(401, problem(401, "The key is missing", "send one"))
        elif asked in answers:
            exchange.answer(200, answers[asked])
        elif "gone" in exchange.path or exchange.path.endswith("/events") or "DELETE" in asked:
            exchange.answer(404, problem(404, "There is no such job", "look at the list"))
        else:
            compressing(exchange)

    address = serve(respond)
    monkeypatch.setenv("ECKART_URL", address)
    return address


@pytest.mark.parametrize(("line", "said", "_field"), RUNS)
def test_each_verb_shows_its_result_through_a_pipe(url, capsys, line, said, _field):
    assert main(shlex.split(line)) == 0

    out, err = capsys.readouterr()
    assert said in out
    assert "\x1b" not in out + err


@pytest.mark.parametrize(("line", "_said", "field"), RUNS)
def test_each_verb_can_print_one_json_document_and_nothing_else(url, capsys, line, _said, field):
    assert main([*shlex.split(line), "--json"]) == 0

    assert field in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("line", "said", "_field"), RUNS)
def test_each_verb_works_on_a_terminal(url, capsys, monkeypatch, line, said, _field):
    with stderr_on_a_terminal(monkeypatch) as shown:
        assert main(shlex.split(line)) == 0

    assert said in capsys.readouterr().out
    assert "Traceback" not in "".join(shown)


def test_a_terminal_shows_what_is_hashed_sent_and_fetched(url, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with stderr_on_a_terminal(monkeypatch) as shown:
        assert main(["compress", "tiny.safetensors", "--rank", "2"]) == 0

    text = "".join(shown)
    words = ("hash tiny", "upload tiny", "job J1", "download tiny", "100%")
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize("line", WITH_SERVICE)
def test_each_verb_ends_with_3_where_no_service_answers(url, capsys, line):
    assert main([*shlex.split(line), "--url", NOWHERE, "--json"]) == 3

    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(f"eckart: no service answers at {NOWHERE}")


@pytest.mark.parametrize("line", WITH_SERVICE)
def test_each_verb_says_which_key_is_missing(url, capsys, monkeypatch, line):
    monkeypatch.delenv("ECKART_API_KEY")

    assert main(shlex.split(line)) == 1
    assert capsys.readouterr().err.endswith("  give the key of the service in ECKART_API_KEY\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("report gone", "There is no such job: look at the list"),
        ("compare J1 gone", "There is no such job: look at the list"),
        ("compare J1 tiny.safetensors", "is not a report"),
        ("watch gone", "There is no such job: look at the list"),
        ("watch J1 --out .", "is not empty"),
        ("watch J2", "job J2 failed: the file is cut"),
        ("cancel gone", "There is no such job"),
        ("resume gone", "There is no such job"),
        ("delete job gone", "There is no such job"),
        ("delete checkpoint gone", "There is no such job"),
        ("plan my-model --spec {", "the spec is not valid"),
        ("expand gone out", "gone"),
        ("watch \udcff", "no request can carry what was given"),
        ("jobs --checkpoint \udcff", "no request can carry what was given"),
        ("jobs --url \udcff", "no request can carry what was given"),
        (f"cancel {'x' * 70_000}", "no request can carry what was given"),
        ("jobs --url nowhere", "is not the address of a service"),
        ("checkpoints --url nowhere", "is not the address of a service"),
    ],
)
def test_what_is_refused_ends_with_1_and_a_sentence(url, capsys, line, said):
    assert main(shlex.split(line)) == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(("eckart: ", "  "))
    assert said in err


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in {"serve", "jobs", "checkpoints"}])
def test_each_verb_that_needs_arguments_ends_with_2_without_them(capsys, verb):
    with pytest.raises(SystemExit) as ended:
        main([verb])

    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"usage: eckart {verb}")


@pytest.mark.parametrize(
    "line",
    [
        "jobs --state lost",
        "checkpoints --limit two",
        "delete it J1",
        "compare A B --by name",
        "serve now",
        "serve --port web",
    ],
)
def test_a_wrong_choice_ends_with_2(capsys, line):
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line))

    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_each_verb_ends_with_examples_that_can_be_given(capsys, verb):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    examples = [line.strip() for line in capsys.readouterr().out.partition("\nexamples:\n")[2].splitlines()]

    assert ended.value.code == 0
    assert examples
    for example in examples:
        command = example.partition("eckart ")[2].partition("#")[0].split(">")[0].strip('" )')
        assert build_parser().parse_args(shlex.split(command)).command == verb


def test_a_failed_job_that_is_watched_is_still_a_document(url, capsys):
    assert main(["watch", "J2", "--json"]) == 1

    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["detail"] == "the file is cut"
    assert err.endswith("eckart: job J2 failed: the file is cut\n")


def test_a_list_that_is_cut_says_so(url, capsys):
    assert main(["jobs", "--limit", "1", "--json"]) == 0

    out, err = capsys.readouterr()
    assert [job["id"] for job in json.loads(out)["jobs"]] == ["J1"]
    assert err == "there are more than 1; see them with a greater --limit\n"


def test_a_list_asks_for_what_is_wanted(serve, capsys):
    asked = []

    def respond(exchange):
        asked.append(exchange.handler.path)
        exchange.answer(200, {"jobs": [], "next_cursor": None})

    assert main(["jobs", "--state", "failed", "--checkpoint", "a b", "--url", serve(respond)]) == 0
    assert "state=failed" in asked[0]
    assert "checkpoint=a+b" in asked[0] or "checkpoint=a%20b" in asked[0]


@pytest.mark.parametrize(
    ("answer", "canceled", "said"),
    [
        ("y\n", True, "interrupted; job J1 is canceled"),
        ("\x03", False, "interrupted; job J1 goes on; to watch it: eckart watch J1"),
    ],
)
def test_an_interrupt_on_a_terminal_asks_about_the_job(serve, job, tmp_path, answer, canceled, said):
    asked = []

    def respond(exchange):
        asked.append((exchange.method, exchange.path))
        running = job("running", progress={"layers_done": 1, "layers_total": 4, "layer": "a"})
        is_cancel = exchange.path.endswith("/cancel")
        exchange.answer(200, job("canceled") if is_cancel else running, {"Retry-After": "30"})

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from eckart.cli import main; sys.exit(main())",
            "watch",
            "J1",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ECKART_URL": serve(respond), "TERM": "xterm"},
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    read_until(ours, "compress a")
    process.send_signal(signal.SIGINT)
    read_until(ours, "cancel job J1? [y/N] ")
    if answer == "\x03":
        process.send_signal(signal.SIGINT)
    else:
        os.write(ours, answer.encode())
    shown = read_until(ours, said)

    assert process.wait(30) == 130
    os.close(ours)
    assert "Traceback" not in shown
    assert (("POST", "/v1/jobs/J1/cancel") in asked) == canceled


def read_until(terminal, text):
    """Read a terminal until it shows this."""
    shown = ""
    while text not in shown:
        try:
            shown += os.read(terminal, 4096).decode()
        except OSError as error:
            raise AssertionError(shown) from error
    return shown
