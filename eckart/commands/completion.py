"""`eckart completion`: a script that completes verbs, options and files in a shell."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from eckart.commands.options import add_json_option, add_verb, write_json
from eckart.errors import InputError

if TYPE_CHECKING:
    import argparse

    from eckart.commands.options import Verbs

SHELLS = ("bash", "zsh", "fish")
# What the help calls an argument that may be a file, or is a directory.
FILES = frozenset({"CHECKPOINT", "OUT", "JOB|FILE", "A", "B", "FILE|JSON", "FILE|ID", "CHECKPOINT|ID"})
DIRECTORIES = frozenset({"DIR"})
EXAMPLES = (
    'eval "$(eckart completion bash)"    # in ~/.bashrc',
    "eckart completion zsh > ~/.zfunc/_eckart    # with `fpath+=~/.zfunc` before compinit in ~/.zshrc",
    "eckart completion fish > ~/.config/fish/completions/eckart.fish",
)


def add_verbs(verbs: Verbs, parser: argparse.ArgumentParser) -> None:
    completion = add_verb(verbs, "completion", "print a script that completes commands in a shell", EXAMPLES)
    completion.add_argument("shell", choices=SHELLS)
    add_json_option(completion)
    completion.set_defaults(run=partial(run_completion, verbs, parser))


def run_completion(verbs: Verbs, parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise InputError(f"{error.msg}: pip install 'eckart[cli]'") from error
    for verb in verbs.choices.values():
        for action in verb._actions:  # noqa: SLF001 - shtab reads them so too
            if action.metavar in FILES | DIRECTORIES:
                kind = shtab.FILE if action.metavar in FILES else shtab.DIRECTORY
                action.complete = kind  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell=options.shell)
    if options.json:
        write_json({"shell": options.shell, "script": script})
    else:
        sys.stdout.write(script + "\n")
