"""The application: its services, middleware, handlers and routes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from importlib.metadata import version
from threading import Event

from fastapi import FastAPI
from starlette.middleware import Middleware

from service.access.authentication import Authentication
from service.access.browsers import AllowedHosts, ForeignRequests
from service.access.links import LinkSigner
from service.access.quotas import Quotas
from service.dependencies import LifespanState, Services
from service.jobs.watch import JobWatches
from service.maintenance.reaper import run_reaper
from service.maintenance.turns import Turns
from service.metrics import Metrics, StateCollector
from service.middleware import Measure, RequestId, RootPath, UnreadBody
from service.openapi import DocumentedApp
from service.planning.pool import PlanningPool
from service.problems import HANDLERS
from service.query import KnownQuery
from service.routes import checkpoints, docs, health, jobs, plans, results, ui, uploads
from service.settings import Settings
from service.uploads.streaming import DiskSpace, UploadSlots
from service.uploads.tus import Tus
from service.webhooks.delivery import WebhookDelivery
from service.webhooks.hosts import WebhookHosts
from service.webhooks.sender import WebhookSender
from state.cache.store import DecompositionCache
from state.checkpoints.store import CheckpointStore
from state.data_dir import DataDir
from state.jobs.queue import JobQueue
from state.jobs.store import JobStore
from state.jobs.webhooks import WebhookFiles
from state.link_secret import link_secret
from state.redis import redis_client
from state.uploads.resumable import ResumableUploads
from state.workers import WorkerRegistry

SUMMARY = "Makes model checkpoints smaller: safetensors in, low-rank safetensors and a report out."


def open_services(settings: Settings) -> Services:
    """Make the services; nothing is connected or written yet."""
    assert settings.redis_url is not None  # `python -m service` does not start without it
    client = redis_client(settings.redis_url)
    decompositions = DecompositionCache.shared(settings.data_dir, limit_bytes=settings.cache_bytes)
    jobs = JobStore(
        client,
        settings.data_dir,
        lease_s=settings.lease_s,
        max_attempts=settings.max_attempts,
        most_waiting=settings.owner_jobs,
        retention_s=settings.retention_s,
    )
    space = DiskSpace(settings.data_dir, settings.min_free_bytes, decompositions, jobs)
    queue = JobQueue(settings.redis_url)
    workers = WorkerRegistry(client)
    stopping = Event()
    turns = Turns(every_s=settings.reaper_s)
    checkpoint_store = CheckpointStore(settings.data_dir)
    return Services(
        settings=settings,
        redis=client,
        space=space,
        checkpoints=checkpoint_store,
        resumable=ResumableUploads(
            settings.data_dir, checkpoint_store, expiry_s=settings.upload_expiry_hours * 3600
        ),
        decompositions=decompositions,
        jobs=jobs,
        queue=queue,
        workers=workers,
        planning=PlanningPool(),
        uploads=UploadSlots(settings.max_uploads),
        quotas=Quotas(settings),
        watches=JobWatches(
            jobs,
            stopping,
            most_streams=settings.max_streams,
            most_streams_each=settings.owner_streams,
            most_each=settings.owner_waits,
        ),
        webhook_hosts=WebhookHosts(settings.webhook_hosts),
        webhook_secrets=settings.webhook_secrets,
        links=LinkSigner(partial(link_secret, DataDir(settings.data_dir))),
        stopping=stopping,
        turns=turns,
        metrics=Metrics(StateCollector(jobs=jobs, queue=queue, workers=workers, space=space, turns=turns)),
    )


def _webhook_delivery(services: Services) -> WebhookDelivery:
    assert services.webhook_secrets is not None  # there are no hosts without it
    return WebhookDelivery(
        services.jobs,
        WebhookFiles(DataDir(services.settings.data_dir)),
        WebhookSender(services.webhook_hosts, services.webhook_secrets),
        count=lambda outcome: services.metrics.webhooks.labels(outcome).inc(),
    )


def create_app(settings: Settings) -> FastAPI:
    """Make the application; only its lifespan touches the disk or Redis."""
    services = open_services(settings)
    keys = settings.key_ring
    hosts = AllowedHosts(settings.host, settings.named_hosts, with_keys=keys is not None)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[LifespanState]:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        if keys is not None:
            keys.warn()
        tasks = [asyncio.create_task(run_reaper(services))]
        if services.webhook_hosts:
            tasks.append(asyncio.create_task(_webhook_delivery(services).run()))
        yield {"services": services}
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        services.close()

    app = DocumentedApp(
        title="Eckart",
        summary=SUMMARY,
        version=version("eckart"),
        lifespan=lifespan,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        exception_handlers=HANDLERS,
        middleware=[
            Middleware(RootPath, root_path=settings.root_path),
            Middleware(RequestId),
            Middleware(Measure, metrics=services.metrics),
            Middleware(UnreadBody),
            Middleware(Tus),
            Middleware(ForeignRequests, hosts=hosts),
            Middleware(Authentication, keys=keys, links=services.links),
        ],
        docs_url=None,
        redoc_url=None,
    )
    app.needs_key = keys is not None
    app.state.stopping = services.stopping
    for routes in (checkpoints, uploads, jobs, results, plans):
        app.include_router(routes.router, dependencies=[KnownQuery])
    # Probes, scrapers and browsers bring parameters of their own.
    for routes in (health, docs, ui):
        app.include_router(routes.router)
    return app
