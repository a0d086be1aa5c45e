"""Credentials for places outside, as people name and describe them; their values are in no message."""

from typing import Annotated, Literal

from pydantic import StringConstraints

SecretKind = Literal["token", "basic", "query", "s3"]
"""``token``: a bearer token. ``basic``: user name and password. ``query``: the query string of a signed URL.
``s3``: keys of an S3 account, with its endpoint."""

SecretName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
"""Unique in its workspace."""
