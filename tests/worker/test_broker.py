"""worker/broker.py: a worker whose connection breaks while it acknowledges a message reads on."""

import pytest
from kombu import Connection, Queue
from kombu.exceptions import OperationalError

from state.redis import broker_url
from worker.broker import correct_acknowledgements


@pytest.mark.parametrize("verb", ["ack", "reject"])
def test_a_message_that_cannot_be_acknowledged_leaves_its_place_to_the_next(redis_server, monkeypatch, verb):
    monkeypatch.setattr("kombu.transport.redis.Channel.QoS", None)  # put back at the end
    correct_acknowledgements()
    queue = Queue("test")
    with Connection(broker_url(redis_server.url)) as connection:
        received = []
        with connection.Consumer(queue, on_message=received.append, prefetch_count=1) as consumer:
            connection.Producer().publish("hello", routing_key="test", retry=False)
            connection.drain_events(timeout=10)
            places = consumer.channel.qos
            assert not places.can_consume()
            redis_server.kill()
            errors = (*connection.connection_errors, OperationalError)
            with pytest.raises(errors):
                getattr(received[0], verb)()
            assert places.can_consume()
            redis_server.start()
            # The consumer notices at its next read that its connection is dead, as it must to connect again.
            with pytest.raises(errors):
                connection.drain_events(timeout=10)
