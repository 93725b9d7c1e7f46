"""Operations as conversations: generators that ask for what they need, and drivers that get it.

An operation yields steps and is sent what they give; an error of a step is thrown into it. So each operation
is written once, for the client that blocks and for the one that does not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from eckart.errors import EckartError

if TYPE_CHECKING:
    from eckart.http import Call, Connection

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a request that is harmless twice; gives the whole answer."""

    call: Call
    patience_s: float | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait; gives nothing."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """Work that blocks, since it reads and writes files; gives what the function returns."""

    function: Callable[[Connection], Any]


Step: TypeAlias = Ask | Pause | Work
Conversation: TypeAlias = Generator[Step, Any, T]


def converse(conversation: Conversation[T], do: Callable[[Step], Any]) -> T:
    """Do each step, and return the result."""
    advance: Callable[[], Step] = partial(next, conversation)
    while True:
        try:
            step = advance()
        except StopIteration as end:
            result: T = end.value
            return result
        try:
            advance = partial(conversation.send, do(step))
        except EckartError as error:
            advance = partial(conversation.throw, error)


async def converse_async(conversation: Conversation[T], do: Callable[[Step], Awaitable[Any]]) -> T:
    """Do the same without blocking."""
    advance: Callable[[], Step] = partial(next, conversation)
    while True:
        try:
            step = advance()
        except StopIteration as end:
            result: T = end.value
            return result
        try:
            advance = partial(conversation.send, await do(step))
        except EckartError as error:
            advance = partial(conversation.throw, error)
