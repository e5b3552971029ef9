"""A client of the platform's gRPC API: calls that block (`Client`) and asyncio's (`AsyncClient`).

    with Client("grpcs://plinth.example.com:8081") as plinth:
        for model in plinth.models.list_models():
            print(model.name)

Each service of `plinth.v1` is an attribute, each of its methods a method with the request's fields
as arguments. Calls that may be repeated are, watches go on where they broke, and what the platform
refuses is raised as the `PlinthError` that it is. Imports gRPC, and no torch, Ray or Redis.
docs/grpc.md is the guide.
"""

from plinth.client.asynchronous import AsyncClient
from plinth.client.blocking import Client
from plinth.client.channels import GatewayAddress
from plinth.client.pages import AsyncPager, Pager
from plinth.client.policy import Policy
from plinth.shared.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PlinthError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

__all__ = [
    "Aborted",
    "AlreadyExists",
    "AsyncClient",
    "AsyncPager",
    "Cancelled",
    "Client",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "GatewayAddress",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "Pager",
    "PermissionDenied",
    "PlinthError",
    "Policy",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
]
