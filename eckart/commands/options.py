"""What all verbs share: their help with examples, `--json`, and the address of the service."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

from eckart.client import DEFAULT_URL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eckart.types import Document

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no other name


def add_verb(verbs: Verbs, name: str, text: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    """Add a verb whose help ends with examples."""
    shown = "".join(f"\n  {example}" for example in examples)
    verb = verbs.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"examples:{shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(parser=verb)
    return verb


def add_json_option(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--json", action="store_true", help="print one JSON document to stdout, and nothing else there"
    )


def add_service_options(verb: argparse.ArgumentParser) -> None:
    """Add the address of the service, and `--json`."""
    add_json_option(verb)
    verb.add_argument(
        "--url",
        default=os.environ.get("ECKART_URL") or DEFAULT_URL,
        help="the address of the service; default: $ECKART_URL, then %(default)s; its API key, if it "
        "needs one, is $ECKART_API_KEY",
    )


def url_option(url: str) -> str:
    """Return the option that a command needs to find the same service, if it needs one."""
    return "" if url == (os.environ.get("ECKART_URL") or DEFAULT_URL) else f" --url {url}"


def write_document(document: Document) -> None:
    sys.stdout.write(document.model_dump_json(indent=2, exclude_unset=True) + "\n")


def write_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
