"""The application: a list of what it has."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from importlib.metadata import version
from threading import Event

from fastapi import FastAPI
from starlette.middleware import Middleware

from service.deps import Services, State
from service.gauges import look
from service.metrics import Metrics
from service.middleware import Measure, RequestId, UnreadBody
from service.openapi import DocumentedApp
from service.problems import HANDLERS
from service.reaper import reap_forever
from service.routes import checkpoints, health, jobs, plans, results
from service.settings import Settings
from service.uploads import Space
from state.checkpoints import CheckpointStore
from state.connection import redis_client
from state.jobs import JobStore
from state.queue import JobQueue
from state.workers import WorkerRegistry

SUMMARY = "Makes model checkpoints smaller: safetensors in, low-rank safetensors and a report out."
DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"


def open_services(settings: Settings) -> Services:
    """Make what routes stand on; nothing is connected yet."""
    redis_url = settings.redis_url or DEFAULT_REDIS_URL
    client = redis_client(redis_url)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    space = Space(settings.data_dir, settings.min_free_bytes)
    jobs = JobStore(client, settings.data_dir, lease_s=settings.lease_s, max_attempts=settings.max_attempts)
    queue = JobQueue(redis_url)
    workers = WorkerRegistry(client)
    return Services(
        settings=settings,
        redis=client,
        space=space,
        checkpoints=CheckpointStore(settings.data_dir),
        jobs=jobs,
        queue=queue,
        workers=workers,
        stopping=Event(),
        metrics=Metrics(partial(look, jobs=jobs, queue=queue, workers=workers, space=space)),
    )


def create_app(settings: Settings | None = None) -> FastAPI:
    """Put the application together."""
    settings = settings or Settings()
    services = open_services(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        reaper = asyncio.create_task(reap_forever(services))
        yield {"services": services}
        reaper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reaper
        services.queue.close()
        services.redis.close()

    app = DocumentedApp(
        title="Eckart",
        summary=SUMMARY,
        version=version("eckart"),
        lifespan=lifespan,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        exception_handlers=HANDLERS,
        middleware=[
            Middleware(RequestId),
            Middleware(Measure, metrics=services.metrics),
            Middleware(UnreadBody),
        ],
        redoc_url=None,
    )
    app.state.stopping = services.stopping
    for routes in (checkpoints, jobs, results, plans, health):
        app.include_router(routes.router)
    return app
