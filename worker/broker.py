"""A correction of kombu: a message that cannot be acknowledged must not keep the worker from the next one."""

from typing import Any

from kombu.transport import redis, virtual


class Acknowledgements(redis.QoS):
    """Counts a message as done even where Redis does not hear of it.

    Else a message whose acknowledgement met a dead connection would hold its place in the prefetch window
    for ever. With one place the worker would then read nothing, so it would not even notice that the
    connection is dead. The message stays with Redis and comes once more after the visibility timeout,
    which is harmless.
    """

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        finally:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - as kombu calls it
        try:
            super().reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]
        finally:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]


def correct_acknowledgements() -> None:
    """Let all channels to Redis of this process use the correction."""
    channel: Any = redis.Channel
    channel.QoS = Acknowledgements
