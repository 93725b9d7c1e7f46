"""The user's side of Eckart: compress checkpoints over HTTP; `eckart.torch` loads the result."""

from eckart.async_client import AsyncClient
from eckart.calibrate import calibrate
from eckart.client import Client
from eckart.errors import (
    AnswerError,
    DigestError,
    EckartError,
    InputError,
    JobFailed,
    LoadError,
    ProblemError,
    ServiceError,
    TransferError,
    UnreachableError,
    WaitTimeoutError,
)
from eckart.merging import merge_statistics
from eckart.progress import ProgressCallback as Progress

__all__ = [
    "AnswerError",
    "AsyncClient",
    "Client",
    "DigestError",
    "EckartError",
    "InputError",
    "JobFailed",
    "LoadError",
    "ProblemError",
    "Progress",
    "ServiceError",
    "TransferError",
    "UnreachableError",
    "WaitTimeoutError",
    "calibrate",
    "merge_statistics",
]
