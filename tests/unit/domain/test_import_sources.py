"""URIs: what they may be, and that none brings a secret into the log."""

import pytest

from command_api.domain.errors import Invalid
from command_api.domain.import_sources import check_secret, default_name, folder_of, host_of, parsed_source
from schemas.secrets import SecretKind


@pytest.mark.parametrize(
    ("uri", "kind", "name"),
    [
        ("https://example.org/data/shapes.zip", "url", "shapes"),
        ("http://example.org:8080/shapes.tar.gz?file=3&raw=1", "url", "shapes"),
        ("https://[2606:4700::1111]/x.tgz", "url", "x"),
        ("s3://lab-data/shapes/v1", "s3", "v1"),
        ("s3://lab-data", "s3", "lab-data"),
        ("file:///srv/my%20clips", "folder", "my clips"),
        ("hf://acme/tiny-smolvlm", "hub", "tiny-smolvlm"),
        ("hf://acme/tiny@refs/pr/1", "hub", "tiny"),
    ],
)
def test_what_can_be_imported(uri: str, kind: str, name: str) -> None:
    source = parsed_source(uri, "lab" if kind == "s3" else None)
    assert (source.kind, source.uri, default_name(source)) == (kind, uri, name)


@pytest.mark.parametrize(
    "uri",
    [
        *("", "example.org/x.zip", "ftp://example.org/x", "javascript:alert(1)", "https://", "https:///x"),
        *(
            "https://example.org:x/",
            "https://example.org:99999/",
            "https://a b/",
            "https://a/\nb",
            "https://a\\b/",
        ),
        *("https://example.org/#x", "s3://UPPER/x", "s3://b", "s3://lab/../x", "s3://lab-data:9000/x"),
        *(
            "file://host/srv",
            "file:relative",
            "file:///srv/../etc",
            "file:///srv/%2e%2e/etc",
            "file:///a%00b",
        ),
        *("hf://noname", "hf://a/b/c", "hf://../b", "hf://a/b@../x", "hf://a/b?x=1"),
    ],
)
def test_what_is_no_source(uri: str) -> None:
    with pytest.raises(Invalid) as caught:
        parsed_source(uri, "lab")
    assert caught.value.code == "source_invalid"
    assert [error.pointer for error in caught.value.errors] == ["/source/uri"]


@pytest.mark.parametrize(
    "uri",
    [
        "https://ada:CANARY@example.org/x.zip",
        "https://CANARY@example.org/x.zip",
        "https://example.org/x.zip?X-Amz-Signature=CANARY",
        "https://example.org/x.zip?token=CANARY",
        "https://example.org/x.zip?sv=1&sig=CANARY",
        "https://example.org/x.zip?rl=" + "CANARY" * 10,
        "s3://AKIA:CANARY@lab-data/x",
    ],
)
def test_credentials_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(Invalid) as caught:
        parsed_source(uri, "lab")
    assert caught.value.code == "source_holds_secret"
    assert "CANARY" not in caught.value.message
    assert "kinora secrets set" in caught.value.message


def test_a_bucket_needs_keys() -> None:
    with pytest.raises(Invalid) as caught:
        parsed_source("s3://lab-data/x", None)
    assert caught.value.code == "secret_needed"


@pytest.mark.parametrize(
    ("uri", "kind", "suits"),
    [
        ("https://example.org/x.zip", "query", True),
        ("https://example.org/x.zip", "s3", False),
        ("s3://lab-data/x", "s3", True),
        ("s3://lab-data/x", "token", False),
        ("hf://a/b", "token", True),
        ("file:///srv", "token", False),
    ],
)
def test_secrets_open_what_they_are_for(uri: str, kind: SecretKind, suits: bool) -> None:
    source = parsed_source(uri, "lab")
    if suits:
        check_secret(source, kind)
        return
    with pytest.raises(Invalid, match="lab"):
        check_secret(source, kind)


def test_parts() -> None:
    assert folder_of(parsed_source("file:///srv/my%20clips", None)) == "/srv/my clips"
    assert host_of(parsed_source("https://[::1]:80/x", None)) == "::1"
    assert host_of(parsed_source("hf://a/b", None)) is None


@pytest.mark.parametrize(
    "uri", ["http://example.org/x.zip", "HTTP://10.1.0.7/x.zip", "http://localhost.example.org/x.zip"]
)
def test_a_secret_is_not_sent_in_the_clear(uri: str) -> None:
    with pytest.raises(Invalid) as caught:
        parsed_source(uri, "lab")
    assert (caught.value.code, caught.value.errors[0].pointer) == ("secret_in_clear", "/source/uri")
    assert parsed_source(uri, None).secret is None


@pytest.mark.parametrize("uri", ["http://127.0.0.1:8080/x.zip", "http://[::1]/x.zip", "http://localhost/x"])
def test_a_secret_may_stay_on_this_machine(uri: str) -> None:
    assert parsed_source(uri, "lab").secret == "lab"
