"""The user's side of Eckart: compress checkpoints over HTTP. Loading the result is `eckart.torch`'s work."""

from eckart.calibration import calibrate
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
from eckart.progress import Progress

__all__ = [
    "AnswerError",
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
]
