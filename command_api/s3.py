"""Clients of S3, which share what botocore knows of the protocol."""

from contextlib import AbstractAsyncContextManager
from functools import cache
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.loaders import Loader, create_loader


def s3_client(
    endpoint_url: str, *, region: str, access_key: str, secret_key: str, config: AioConfig
) -> AbstractAsyncContextManager[Any]:
    """A client of one endpoint, of a session of its own."""
    session = get_session()
    session.register_component("data_loader", _knowledge())
    client: AbstractAsyncContextManager[Any] = session.create_client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=config,
    )
    return client


@cache
def _knowledge() -> Loader:
    # A megabyte of JSON. Read anew for each client, it takes most of the time that making one takes.
    return create_loader()
