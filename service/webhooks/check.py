"""Whether a webhook that a request asks for can be sent, checked before the job is created."""

from schemas.problem import ProblemKind
from schemas.webhook import WebhookRequest
from service.dependencies import Services
from service.errors import ProblemError
from service.webhooks.hosts import WebhookRefused
from service.webhooks.sender import UNSIGNED


def check_webhook(services: Services, webhook: WebhookRequest, *, pointer: str) -> None:
    """Refuse a webhook that may not go where its URL leads, or that nothing would sign."""
    try:
        services.webhook_hosts.require(webhook.url)
    except WebhookRefused as error:
        raise ProblemError(ProblemKind.INVALID_WEBHOOK, str(error), pointer=pointer) from error
    if services.webhook_secrets is None or not services.webhook_secrets.of(services.owner):
        raise ProblemError(ProblemKind.INVALID_WEBHOOK, UNSIGNED, pointer=pointer)
