"""The command line, called as a function and as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eckart.cli import build_parser, main
from schemas.rank_rule import SpecRule
from schemas.report_page import report_page
from schemas.spec import CompressionSpec
from service.report_template import report_template
from tests.reports import hostile_report

ROOT = Path(__file__).parents[2]
RATIO = ("--ratio", "0.5")


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Write a small model into a directory that the commands run in."""
    monkeypatch.chdir(tmp_path)
    save_file({"a.weight": torch.ones(8, 8), "b.weight": torch.ones(1, 8)}, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def url(serve, service, layer):
    """Serve a small service that has one result."""
    respond, _ = service({"tiny.safetensors": b"smaller"}, layers=[layer("a", shape=(8, 8), rank=2)])
    return serve(respond)


def test_compress_shows_the_report_and_leaves_the_files(model, url, capsys):
    assert main(["compress", "tiny.safetensors", *RATIO, "--url", url]) == 0

    out, err = capsys.readouterr()
    assert out.startswith("job J1: svd at ratio 0.5")
    assert out.endswith("tiny-compressed/tiny.safetensors\ntiny-compressed/report.json\n")
    assert "job J1" in err
    remove = f"eckart delete checkpoint my-model --url {url}"
    assert err.endswith(f"the checkpoint stays stored as my-model; to remove it: {remove}\n")
    assert (model.parent / "tiny-compressed" / "tiny.safetensors").read_bytes() == b"smaller"


def test_compress_can_print_the_report_as_json_and_nothing_else(model, url, capsys):
    assert main(["compress", str(model), *RATIO, "--url", url, "--json", "--out", "here/there"]) == 0

    assert json.loads(capsys.readouterr().out) == json.loads(
        (model.parent / "here" / "there" / "report.json").read_text()
    )


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("plan tiny.safetensors --spec nospec.json", "There is no file nospec.json."),
        ("report report.json --html no/page.html", "There is no folder no."),
    ],
)
def test_a_file_that_is_not_there_is_told_in_a_sentence(model, capsys, command, said):
    (model.parent / "report.json").write_text(json.dumps(hostile_report()))

    assert main(command.split()) == 1
    assert capsys.readouterr().err == f"eckart: {said}\n"


@pytest.mark.parametrize(
    ("out", "said"),
    [(".", "is not empty; name another"), ("tiny.safetensors", "is not a directory; name another")],
)
def test_a_place_that_is_taken_is_refused_before_any_work(model, serve, capsys, out, said):
    asked = []

    assert main(["compress", str(model), *RATIO, "--url", serve(asked.append), "--out", out]) == 1
    assert said in capsys.readouterr().err
    assert asked == []


def test_a_failed_job_is_told_with_its_reason(model, serve, service, problem, capsys):
    fields = [{"pointer": "/a.weight/shape", "detail": "too odd"}]
    respond, _ = service({}, fail=problem(detail="The file is cut.", errors=fields))

    assert main(["compress", str(model), *RATIO, "--url", serve(respond)]) == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("eckart: job J1 failed: The file is cut.\n  /a.weight/shape: too odd\n")


def test_a_job_that_failed_on_the_machine_is_told_with_how_it_goes_on(model, serve, service, problem, capsys):
    respond, _ = service({}, fail=problem(detail="The worker was lost.", status=500))
    url = serve(respond)

    assert main(["compress", str(model), *RATIO, "--url", url]) == 1

    assert capsys.readouterr().err.endswith(f"go on with them: eckart resume J1 --url {url}\n")


def test_a_refused_spec_is_told_with_its_field_and_no_file_is_sent(model, serve, problem, capsys):
    asked = []

    def respond(exchange):
        asked.append((exchange.method, exchange.path))
        exchange.answer(422, problem(errors=[{"pointer": "/rank/ratio", "detail": "too large"}]))

    assert main(["compress", str(model), "--ratio", "7", "--url", serve(respond)]) == 1

    assert capsys.readouterr().err == ("eckart: The spec is not valid: fix it\n  /rank/ratio: too large\n")
    assert asked == [("POST", "/v1/plans")]


def test_a_plan_of_a_file_sends_its_header_only(model, serve, plan, capsys):
    asked = []

    def respond(exchange):
        asked.append((exchange.method, exchange.path, exchange.body))
        exchange.answer(200, plan)

    assert main(["plan", str(model), "--rank", "2", "--url", serve(respond)]) == 0

    assert capsys.readouterr().out.startswith("plan for tiny\n")
    ((method, path, body),) = asked
    assert (method, path) == ("POST", "/v1/plans")
    header = model.read_bytes()[: -4 * 72]
    assert b'name="header"; filename="tiny.safetensors"' in body
    assert header in body
    assert len(body) < len(header) + 600


def test_a_plan_can_be_json(serve, plan, capsys):
    url = serve(lambda exchange: exchange.answer(200, plan | {"colour": "blue"}))
    assert main(["plan", "my-model", "--rank", "2", "--json", "--url", url]) == 0

    assert json.loads(capsys.readouterr().out) == plan | {"colour": "blue"}


def test_each_field_of_the_spec_has_an_option_or_needs_a_whole_spec():
    options = vars(build_parser().parse_args(["plan", "x", "--rank", "2"]))
    fields = {*CompressionSpec.model_fields, *SpecRule.model_fields}

    assert fields - options.keys() == {"overrides", "cur", "experts"}
    ours = {"command", "source", "local", "component", "spec", "json", "url", "run", "parser"}
    assert options.keys() - fields == ours


def test_every_option_reaches_the_spec(model, serve, job, capsys):
    asked = []

    def respond(exchange):
        asked.append(json.loads(exchange.body))
        exchange.answer(422, {})

    options = "--method cur --rank 3 --selector cpqr --include a* --include b* --exclude c* --layout dense"
    options += " --dtype bfloat16 --seed 7 --transposed h.* --transposed g --calibration my-grams"
    options += " --base my-base"
    assert main(["compress", "my-model", *options.split(), "--url", serve(respond)]) == 1

    assert asked[0]["checkpoint"] == "my-model"
    assert asked[0]["spec"] == {
        "method": "cur",
        "rank": 3,
        "selector": "cpqr",
        "include": ["a*", "b*"],
        "exclude": ["c*"],
        "layout": "dense",
        "dtype": "bfloat16",
        "seed": 7,
        "transposed": ["h.*", "g"],
        "calibration": "my-grams",
        "base": "my-base",
    }


def test_several_methods_are_a_list_and_one_without_ranks_needs_none(asked_spec):
    listed = asked_spec("--method", "svd", "--method", "int4+svd", "--budget-bytes", "1000000")

    assert listed == {"method": ["svd", "int4+svd"], "rank": {"budget_bytes": 1_000_000}}
    assert asked_spec("--method", "svd,int4+svd", "--budget-bytes", "1000000") == listed
    assert asked_spec("--method", "int8") == {"method": "int8"}
    assert asked_spec("--method", "int4", "--group", "32") == {"method": "int4", "group": 32}


def test_pairs_are_the_known_ones_or_a_list(asked_spec):
    known = asked_spec("--ratio", "0.5", "--pairs", "neurons")
    assert known == {"rank": {"ratio": 0.5}, "pairs": "neurons"}
    given = [{"up": "h.*.up", "down": "h.*.down", "share": 0.5}]
    assert asked_spec("--rank", "4", "--pairs", json.dumps(given)) == {"rank": 4, "pairs": given}


def test_a_base_alone_makes_an_adapter(asked_spec):
    assert asked_spec("--rank", "3", "--base", "my-base") == {
        "rank": 3,
        "layout": "adapter",
        "base": "my-base",
    }


@pytest.fixture
def asked_spec(serve, plan):
    """Plan `my-model` with these options; return the spec that the service gets."""

    def ask(*options):
        asked = []

        def respond(exchange):
            asked.append(json.loads(exchange.body)["spec"])
            exchange.answer(200, plan)

        assert main(["plan", "my-model", *options, "--url", serve(respond)]) == 0
        return asked[0]

    return ask


@pytest.mark.parametrize("rule", ["ratio", "energy", "error", "budget"])
def test_each_rule_can_be_given(asked_spec, rule):
    assert asked_spec(f"--{rule}", "0.4") == {"rank": {rule: 0.4}}


def test_a_number_of_bytes_can_be_given_with_what_goes_with_it(asked_spec):
    line = "--budget-bytes 1000000 --objective absolute --align 2 --min-rank 2"

    assert asked_spec(*line.split()) == {
        "rank": {"budget_bytes": 1_000_000},
        "objective": "absolute",
        "align": 2,
        "min_rank": 2,
    }


@pytest.mark.parametrize("as_file", [True, False])
def test_a_whole_spec_may_be_a_file_or_text(model, asked_spec, as_file):
    text = '{"method": "cx", "rank": 2}'
    (model.parent / "spec.json").write_text(text)

    assert asked_spec("--spec", "spec.json" if as_file else text) == json.loads(text)


@pytest.mark.parametrize("kind", ["file", "directory", "job"])
def test_a_report_is_shown_from_a_file_a_directory_or_a_job(model, url, report, capsys, kind):
    path = model.parent / "report.json"
    path.write_text(json.dumps(report()))
    given = {"file": str(path), "directory": str(model.parent), "job": "J1"}[kind]

    assert main(["report", given, "--url", url]) == 0
    assert capsys.readouterr().out.startswith("job J1: svd at ratio 0.5")


@pytest.mark.parametrize("kind", ["file", "job"])
def test_a_report_can_be_the_page_that_the_service_sends(model, serve, url, capsys, kind):
    document = hostile_report()
    (model.parent / "report.json").write_text(json.dumps(document))
    address = serve(lambda exchange: exchange.answer(200, document)) if kind == "job" else url
    given = {"file": ".", "job": "J1"}[kind]

    assert main(["report", given, "--url", address, "--html", "page.html"]) == 0
    assert capsys.readouterr().out == "page.html\n"
    assert (model.parent / "page.html").read_text("utf-8") == report_page(report_template(), document)


def test_a_report_can_be_json(url, capsys):
    assert main(["report", "J1", "--url", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["job_id"] == "J1"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("report gone.json", "there is no such file"),
        ("report tiny.safetensors", "is not a report"),
        ("report J1 --url nowhere", "is not the address of a service"),
        ("plan gone.safetensors --rank 2", "there is no such file"),
        ("plan my-model --rank 2 --local", "--local takes no id"),
        ("compress tiny.safetensors --rank 2 --local --out x.safetensors", "--out names a directory"),
        ("plan tiny.safetensors --spec gone.json", "gone.json"),
        ("plan tiny.safetensors --spec {", "the spec is not valid"),
    ],
)
def test_what_is_refused_ends_with_1_and_a_sentence(model, capsys, line, said):
    assert main(line.split()) == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(("eckart: ", "  "))
    assert said in err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "COMMAND"),
        ("shrink x", "invalid choice"),
        ("compress", "CHECKPOINT"),
        (
            "compress x",
            "one of the arguments --rank --ratio --energy --error --auto --budget --budget-bytes --spec is",
        ),
        ("plan x", "is required"),
        ("compress x --rank 2 --ratio 0.5", "not allowed with"),
        ("compress x --rank two", "invalid int value"),
        ("compress x --rank 2 --method lu", "invalid choice: 'lu'"),
        ("compress x --budget-bytes 9 --method svd,lu", "invalid choice: 'lu'"),
        ("compress x --rank 2 --pairs heads", "give neurons, or the pairs as a JSON list"),
        ("compress x --spec {} --method svd --min-rank 1", "leave out --method, --min-rank"),
    ],
)
def test_what_is_not_asked_rightly_ends_with_2_and_the_usage(capsys, line, said):
    with pytest.raises(SystemExit) as ended:
        main(line.split())

    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def started(*arguments, cwd, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "eckart", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_process_gets_the_address_from_the_environment(model, url):
    with started("compress", "tiny.safetensors", *RATIO, cwd=model.parent, ECKART_URL=url) as process:
        out, err = process.communicate()

    assert process.returncode == 0, err
    assert out.startswith("job J1")


def test_a_process_that_fails_shows_no_traceback(model):
    with started("report", "J1", cwd=model.parent, ECKART_URL="http://127.0.0.1:9") as process:
        out, err = process.communicate()

    assert (process.returncode, out) == (3, "")
    assert err.startswith("eckart: no service answers at http://127.0.0.1:9")
    assert len(err.splitlines()) == 1


def test_a_name_that_the_terminal_cannot_show_is_escaped(model, report):
    text = json.dumps(report(spec={"method": "svd", "rank": 4, "include": ["é"]}), ensure_ascii=False)
    (model.parent / "report.json").write_text(text, "utf-8")
    with started("report", ".", "--json", cwd=model.parent, PYTHONIOENCODING="ascii") as process:
        out, err = process.communicate()

    assert process.returncode == 0, err
    assert '"\\xe9"' in out


def test_a_reader_that_goes_away_causes_no_noise(model, report):
    (model.parent / "report.json").write_text(json.dumps(report()))
    with started("report", ".", cwd=model.parent) as process:
        process.stdout.close()
        err = process.stderr.read()

    assert (process.wait(), err) == (1, "")


def test_an_interrupt_ends_the_command_and_not_the_job(model, serve, job):
    asked = []

    def respond(exchange):
        asked.append(exchange.method)
        exchange.answer(202 if exchange.method == "POST" else 200, job("running"), {"Retry-After": "30"})

    with started("compress", "my-model", *RATIO, cwd=model.parent, ECKART_URL=serve(respond)) as process:
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()

    assert first == "job J1\n"
    assert process.returncode == 130
    assert err.endswith("eckart: interrupted; job J1 goes on; to watch it: eckart watch J1\n")
    assert "Traceback" not in err
    assert set(asked) <= {"POST", "GET"}
