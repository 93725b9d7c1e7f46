"""`eckart completion`: each script is loaded as the help says, in its shell, and asked what it completes."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest

from eckart.cli import main

pytest.importorskip("shtab", reason="the extra `cli` is not installed")

# What is typed, and what it becomes: a verb, an option, one of its values, a file, and a folder.
TYPED = {
    "eckart che": "checkpoints",
    "eckart jobs --sta": "--state",
    "eckart jobs --state suc": "succeeded",
    "eckart plan ti": "tiny.safetensors",
    "eckart serve --data fol": "folder",  # and a slash, which each shell treats in a way of its own
}


@pytest.fixture
def script(request, tmp_path, capsys):
    """Write the script of a shell, beside a file and a folder; skip where there is no such shell."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "tiny.safetensors").touch()
    (tmp_path / "folder").mkdir()
    assert main(["completion", shell]) == 0
    path = tmp_path / "scripts" / {"zsh": "_eckart"}.get(shell, f"eckart.{shell}")
    path.parent.mkdir()
    path.write_text(capsys.readouterr().out)
    return path


def run(folder, *command):
    """Run a command and return its lines."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_completes_verbs_options_values_and_files(script, tmp_path):
    ask = """
        source scripts/eckart.bash
        for line in "${@}"; do
            COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
            $FUNCTION eckart "${COMP_WORDS[-1]}"
            echo "${COMPREPLY[@]}"
        done
    """
    function = next(line.split()[-2] for line in script.read_text().splitlines() if " -F " in line)
    found = run(tmp_path, "bash", "-c", ask.replace("$FUNCTION", function), "bash", *TYPED)

    assert found == list(TYPED.values())


@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_fish_completes_verbs_options_values_and_files(script, tmp_path):
    ask = "source scripts/eckart.fish; for line in $argv; complete -C $line; end"
    found = run(tmp_path, "fish", "--no-config", "-c", ask, "--", *TYPED)

    assert [line.partition("\t")[0].rstrip("/") for line in found] == list(TYPED.values())


def typed_on_a_terminal(folder, *lines):
    """Type lines to a zsh, which completes only on a terminal; return what it has shown."""
    ours, theirs = pty.openpty()
    settings = {"TERM": "dumb", "HOME": str(folder), "ZDOTDIR": str(folder)}
    with subprocess.Popen(
        ["zsh", "-f", "-i"],
        cwd=folder,
        env=os.environ | settings,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ):
        os.close(theirs)
        os.write(ours, "".join(lines).encode())
        shown = b""
        with suppress(OSError):  # so Linux tells that the other end was closed
            while block := os.read(ours, 4096):
                shown += block
    os.close(ours)
    return shown.decode()


@pytest.mark.parametrize("script", ["zsh"], indirect=True)
def test_zsh_completes_verbs_options_values_and_files(script, tmp_path):
    begin = "bindkey -e; fpath+=$PWD/scripts; autoload -Uz compinit; compinit -D -u\n"
    # A tab, to the begin of the line, and there a command that prints the line.
    asked = [f"{line}\t\x01print -r -- GOT \n" for line in TYPED]
    shown = typed_on_a_terminal(tmp_path, begin, *asked, "exit\n")

    found = [line.split()[-1] for line in shown.splitlines() if line.startswith("GOT ")]
    assert found == list(TYPED.values()), shown


def test_without_shtab_completion_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)

    assert main(["completion", "zsh"]) == 1
    assert "pip install 'eckart[cli]'" in capsys.readouterr().err
