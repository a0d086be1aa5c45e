"""What an import's URI means, judged before it is recorded: the log keeps it, so it may hold no secret."""

import re
from ipaddress import ip_address
from urllib.parse import parse_qsl, unquote, urlsplit

from command_api.domain.errors import Invalid
from schemas.imports import ImportSource, SourceKind
from schemas.secrets import SecretKind

_KINDS: dict[str, SourceKind] = {
    "https": "url",
    "http": "url",
    "s3": "s3",
    "file": "folder",
    "hf": "hub",
}
SUITABLE: dict[SourceKind, tuple[SecretKind, ...]] = {
    "url": ("token", "basic", "query"),
    "s3": ("s3",),
    "folder": (),
    "hub": ("token",),
}
"""Kinds of secrets that open a kind of source."""

_POINTER = "/source/uri"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REPOSITORY = re.compile(
    r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[A-Za-z0-9][\w./-]{0,199})?", re.ASCII
)
_SECRET_PARAMETER = re.compile(
    r"sig|token|secret|credential|passw|pwd|auth|key|session|jwt|policy|expires", re.IGNORECASE
)
_LONGEST_VALUE = 40
"""Longer values in a query are taken for signatures or keys."""


def parsed_source(uri: str, secret: str | None) -> ImportSource:
    """The source that a URI names.

    Raises:
        Invalid: naming what is wrong, never the URI itself where it may hold a credential.
    """
    if not uri.isprintable() or " " in uri or "\\" in uri:
        raise _refused("source_invalid", "uri holds spaces, backslashes or control characters; escape them")
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        raise _refused("source_invalid", "uri is not an address; check host and port") from None
    kind = _KINDS.get(parts.scheme)
    if kind is None:
        raise _refused(
            "source_invalid",
            "uri must begin with https://, http://, s3://, file:// or hf://",
        )
    if kind != "hub" and (parts.username is not None or parts.password is not None):
        raise _refused(
            "source_holds_secret",
            "uri holds a user name or password; store it with `kinora secrets set NAME --kind basic`"
            " and name that secret",
        )
    if parts.fragment or (parts.query and kind != "url") or (port is not None and kind != "url"):
        raise _refused(
            "source_invalid", f"a {parts.scheme}:// uri has no port, query or fragment; leave it out"
        )
    match kind:
        case "url":
            _check_url(parts.hostname, parts.query)
            if secret is not None and parts.scheme == "http" and not _is_this_machine(parts.hostname):
                raise _refused(
                    "secret_in_clear",
                    "uri begins with http://, where everybody on the way could read the secret; use https://,"
                    " or leave the secret out",
                )
        case "s3":
            _check_bucket(parts.netloc, parts.path)
        case "folder":
            _check_folder(parts.netloc, parts.path)
        case "hub":
            if not _REPOSITORY.fullmatch(uri.removeprefix("hf://")) or ".." in uri:
                raise _refused(
                    "source_invalid", "uri must look like hf://owner/name or hf://owner/name@revision"
                )
    if kind == "s3" and secret is None:
        raise Invalid.field(
            "/source/secret",
            "secret_needed",
            "an s3:// source needs a secret of kind s3; store one with `kinora secrets set NAME --kind s3`",
        )
    return ImportSource(kind=kind, uri=uri, secret=secret)


def check_secret(source: ImportSource, kind: SecretKind) -> None:
    """Whether a secret of this kind can open the source.

    Raises:
        Invalid: code ``secret_unsuitable``.
    """
    suitable = SUITABLE[source.kind]
    if kind not in suitable:
        raise Invalid.field(
            "/source/secret",
            "secret_unsuitable",
            f"secret {source.secret} is of kind {kind}; a {source.kind} source takes"
            f" {' or '.join(suitable) or 'none'}",
        )


def folder_of(source: ImportSource) -> str:
    """The server's path that a ``file://`` source names."""
    return unquote(urlsplit(source.uri).path)


def host_of(source: ImportSource) -> str | None:
    """The host that a URL names."""
    return urlsplit(source.uri).hostname if source.kind == "url" else None


def default_name(source: ImportSource) -> str:
    """What to call it when nobody said: the last part of the path, without an archive's suffix."""
    parts = urlsplit(source.uri)
    path = unquote(f"{parts.netloc}{parts.path}").split("@")[0]
    last = re.sub(r"(\.tar)?(\.zip|\.gz|\.bz2|\.tgz|\.tar)?$", "", path.rstrip("/").rsplit("/", 1)[-1])
    return last if last.isprintable() and last.strip() else "import"


def _check_url(host: str | None, query: str) -> None:
    if not host:
        raise _refused("source_invalid", "uri names no host")
    for name, value in parse_qsl(query, keep_blank_values=True):
        if _SECRET_PARAMETER.search(name) or len(value) > _LONGEST_VALUE:
            raise _refused(
                "source_holds_secret",
                "the query of uri looks like a signature or a key; store it with `kinora secrets set NAME"
                " --kind query`, leave it out of uri, and name that secret",
            )


def _is_this_machine(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


def _check_bucket(bucket: str, path: str) -> None:
    if not _BUCKET.fullmatch(bucket):
        raise _refused("source_invalid", "uri must look like s3://bucket/prefix, with a valid bucket name")
    if any(part in (".", "..") for part in path.split("/")):
        raise _refused("source_invalid", "the prefix of uri holds . or ..; write it out")


def _check_folder(host: str, path: str) -> None:
    plain = unquote(path)
    if host or not plain.startswith("/") or "\0" in plain or ".." in plain.split("/"):
        raise _refused(
            "source_invalid", "uri must look like file:///folder/of/the/server, absolute and without .."
        )


def _refused(code: str, message: str) -> Invalid:
    return Invalid.field(_POINTER, code, message)
