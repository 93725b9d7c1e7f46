"""`eckart serve`, `compress`, `plan` and `expand`: what runs or makes something."""

from __future__ import annotations

import json
import re
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from eckart import launch
from eckart.bars import progress_for
from eckart.checkpoint import ENDING, bare_name, find_checkpoint, listed
from eckart.client import Client
from eckart.commands import pipelines
from eckart.commands.following import follow_to_end, how_to_fetch, how_to_watch, interrupted_with
from eckart.commands.options import (
    add_json_option,
    add_service_options,
    add_verb,
    url_option,
    write_json,
)
from eckart.commands.reports import read_report, show
from eckart.commands.spec_options import add_spec_options, spec_from
from eckart.companions import REPORT_NAME, copy_subfolders
from eckart.errors import InputError
from eckart.pipeline_folder import is_pipeline
from eckart.types import PlanDocument

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from eckart.bars import Bars
    from eckart.commands.options import Verbs
    from eckart.progress import ProgressLine

# The options for other checkpoints, and the fields of a spec that name them.
REFERENCES = ("calibration", "base")
COMPRESS_EXAMPLES = (
    "eckart compress model.safetensors --budget 0.5",
    "eckart compress my-model/ --ratio 0.5 --out smaller/",
    "eckart compress my-model/ --method svd,int4+svd --budget-bytes 500000000",
    "eckart compress tuned/ --base original/ --rank 16    # a LoRA adapter",
    "eckart compress model.safetensors --spec spec.json --local    # without a service",
    "eckart compress stable-diffusion/ --ratio 0.5 --component unet    # of a whole pipeline",
)
PLAN_EXAMPLES = (
    "eckart plan model.safetensors --ratio 0.5    # sends only the header of the file",
    "eckart plan my-model --rank 64 --json    # a stored checkpoint",
)
EXPAND_EXAMPLES = ("eckart expand my-model-compressed my-model-dense",)
SERVE_EXAMPLES = (
    "eckart serve",
    "eckart serve --port 9000 --data /var/lib/eckart",
    "eckart serve --host 0.0.0.0    # for other machines; set ECKART_API_KEYS first",
)
# The options of `serve`, and the settings of the same meaning; all others are variables only.
SERVE_SETTINGS = {"port": "ECKART_PORT", "host": "ECKART_HOST", "data": "ECKART_DATA_DIR"}


def add_verbs(verbs: Verbs) -> None:
    serve = add_verb(verbs, "serve", "run API, worker and queue on this machine until Ctrl-C", SERVE_EXAMPLES)
    serve.add_argument(
        "--port", type=int, help="listen there; default: $ECKART_PORT, then 8000; 0: a free one"
    )
    serve.add_argument(
        "--host", metavar="ADDRESS", help="listen on this address; default: $ECKART_HOST, then 127.0.0.1"
    )
    serve.add_argument(
        "--data", metavar="DIR", help="keep everything in this folder; default: $ECKART_DATA_DIR, then data"
    )
    serve.set_defaults(run=run_serve)
    compress = add_verb(
        verbs, "compress", "compress a checkpoint and fetch the result with its report", COMPRESS_EXAMPLES
    )
    compress.set_defaults(run=run_compress)
    plan = add_verb(verbs, "plan", "show what would be done to each layer, without doing it", PLAN_EXAMPLES)
    plan.set_defaults(run=run_plan)
    for verb in (compress, plan):
        verb.add_argument(
            "source",
            metavar="CHECKPOINT",
            help="a .safetensors file, an index, a directory, a pipeline's directory, or the id of a stored "
            "checkpoint",
        )
        verb.add_argument("--local", action="store_true", help="use the bundled worker instead of a service")
        verb.add_argument(
            "--component",
            action="append",
            metavar="NAME",
            help="of a pipeline of diffusers, compress this component; may be repeated; default: all that "
            "have weights, but no autoencoder",
        )
        add_spec_options(verb)
        add_service_options(verb)
    compress.add_argument("--out", type=Path, metavar="DIR", help="output folder; default: <name>-compressed")
    expand = add_verb(
        verbs,
        "expand",
        "multiply a compressed checkpoint out, so that any loader takes it",
        EXPAND_EXAMPLES,
    )
    expand.add_argument(
        "source", type=Path, metavar="CHECKPOINT", help="a .safetensors file, an index or a directory"
    )
    expand.add_argument("out", type=Path, metavar="OUT", help="a new folder, or a .safetensors file")
    add_json_option(expand)
    expand.set_defaults(run=run_expand)


def run_serve(options: argparse.Namespace) -> None:
    """Serve, with what the options set above the variables of the environment."""
    given = {name: getattr(options, option) for option, name in SERVE_SETTINGS.items()}
    if empty := [f"--{option}" for option, name in SERVE_SETTINGS.items() if given[name] == ""]:
        raise InputError(f"{listed(empty)} is empty: give a value, or leave it out")
    launch.serve({name: str(value) for name, value in given.items() if value is not None})


def run_compress(options: argparse.Namespace) -> None:
    """Compress, here or by the service, and show the report."""
    spec = spec_from(options)
    into = options.out or default_out(options.source)
    refuse_used(into)
    if options.local and into.suffix == ENDING:
        raise InputError(f"{into}: --out names a directory")
    if pipelines.are_meant(options):
        stored = pipelines.run_compress(options, spec, into, compress_into)
    else:
        paths, stored = compress_into(options, spec, into, model_folder(options.source))
        show(read_report(into / REPORT_NAME), as_json=options.json)
        if not options.json:
            sys.stdout.write("\n" + "".join(f"{path}\n" for path in paths))
    sys.stdout.flush()
    for name in stored:
        remove = f"eckart delete checkpoint {name}{url_option(options.url)}"
        print(f"the checkpoint stays stored as {name}; to remove it: {remove}", file=sys.stderr)


def compress_into(
    options: argparse.Namespace, spec: dict[str, Any], into: Path, folder: Path | None
) -> tuple[list[Path], list[str]]:
    """Compress one checkpoint; return the files of its result, and the ids of what was uploaded."""
    if not options.local:
        return compress_remotely(options, spec, into, folder)
    run_local(options, spec, into)
    paths = sorted(into.iterdir())
    return paths + list(copy_subfolders(folder, into) if folder else ()), []


def compress_remotely(
    options: argparse.Namespace, spec: dict[str, Any], into: Path, folder: Path | None
) -> tuple[list[Path], list[str]]:
    """Let the service compress, and fetch the result; return its files, and the ids of what was uploaded."""
    with Client(options.url) as client, closing(progress_for(sys.stderr)) as progress:
        named = {name: getattr(options, name) for name in REFERENCES}
        with interrupted_with("a job that was accepted goes on, and `eckart jobs` lists it"):
            job = client.compress(options.source, spec, **named, wait=False, progress=progress)
            with interrupted_with(how_to_watch(job.id, options.url)):
                progress.note(f"job {job.id}")
                follow_to_end(client, job.id, progress, options.url)
        with interrupted_with(how_to_fetch(job.id, options.url)):
            paths = client.download(job.id, into, source=folder, progress=progress)
    sent = {"checkpoint": options.source, **named}
    stored = {"checkpoint": job.checkpoint, **job.spec}
    uploaded = [name for name, given in sent.items() if given is not None and find_checkpoint(given)]
    return list(paths), [str(stored[name]) for name in uploaded if name in stored]


def model_folder(source: str) -> Path | None:
    """Return the folder to compress, having said what of it stays out; None for a file or an id."""
    files = find_checkpoint(source)
    if files is None or not Path(source).is_dir():
        return None
    if left_out := files.companions.left_out:
        print(f"left out: {listed(left_out)}", file=sys.stderr)
    return Path(source)


def run_plan(options: argparse.Namespace) -> None:
    """Show what a job would do."""
    spec = spec_from(options)
    if pipelines.are_meant(options):
        pipelines.run_plan(options, spec, plan_one)
    else:
        show(plan_one(options, spec), as_json=options.json)


def plan_one(options: argparse.Namespace, spec: dict[str, Any]) -> PlanDocument:
    """Plan one checkpoint, here or by the service."""
    if options.local:
        return PlanDocument.model_validate_json(run_local(options, spec))
    with Client(options.url) as client:
        return client.plan(options.source, spec, calibration=options.calibration, base=options.base)


def run_local(options: argparse.Namespace, spec: dict[str, Any], *into: Path) -> str:
    """Run the bundled worker on files; return its output."""
    if find_checkpoint(options.source) is None:
        raise InputError(f"{options.source}: there is no such file or directory; --local takes no id")
    given = {name: Path(path) for name in REFERENCES if (path := getattr(options, name)) is not None}
    run = partial(
        launch.run_worker_command,
        options.command,
        Path(options.source),
        *into,
        spec=json.dumps(spec),
        references=given,
    )
    if not sys.stderr.isatty():
        return run()
    with closing(progress_for(sys.stderr)) as progress:
        return run(tell=LocalProgress(progress))


class LocalProgress:
    """Shows the lines of the bundled worker's progress as bars, and its other lines as they are."""

    # As `ProgressLines` in worker/__main__.py writes them.
    LINE = re.compile(r" *\d+% (\d+)/(\d+) (.+)")

    def __init__(self, progress: ProgressLine | Bars) -> None:
        self._progress = progress

    def __call__(self, line: str) -> None:
        found = self.LINE.fullmatch(line)
        if found is None:
            self._progress.note(line)
        else:
            self._progress(int(found[1]), int(found[2]), f"compress {found[3]}")


def default_out(given: str) -> Path:
    """Name the output after the input, in the current directory."""
    name = Path(given).absolute().name
    return Path(f"{bare_name(name)}-compressed")


def refuse_used(into: Path) -> None:
    """Refuse an output folder with files before any work; hidden ones are parts of a broken download."""
    if into.exists() and not into.is_dir():
        raise InputError(f"{into} is not a directory; name another one with --out")
    if into.is_dir() and any(not path.name.startswith(".") for path in into.iterdir()):
        raise InputError(f"{into} is not empty; name another directory with --out")


def run_expand(options: argparse.Namespace) -> None:
    """Write the dense checkpoint of a compressed one."""
    try:
        from eckart.torch import expand
    except ModuleNotFoundError as error:
        raise InputError(str(error)) from error
    if is_pipeline(options.source):
        paths = pipelines.expand_components(options.source, options.out, expand)
    else:
        paths = list(expand(options.source, options.out))
    if options.json:
        write_json({"files": [str(path) for path in paths]})
    else:
        sys.stdout.write("".join(f"{path}\n" for path in paths))
