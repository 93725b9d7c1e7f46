"""Names that the producer, the consumer and the sweep have in common."""

TASK = "eckart.compress"
QUEUE = "eckart"
# Before every key of Celery's, so that nobody else's tasks share our unacknowledged messages.
BROKER_PREFIX = "eckart:broker:"
QUEUE_KEY = BROKER_PREFIX + QUEUE
