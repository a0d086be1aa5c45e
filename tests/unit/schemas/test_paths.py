"""A path that an agent or a client names never leads out of its folder, and means one file everywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.objects import FileEntry, checkpoint_prefix
from schemas.work import UploadRequest

LONGEST = checkpoint_prefix("org_" + "0" * 32, "job_" + "0" * 32, 10**6, 10**9)


def entry(path: str) -> FileEntry:
    return FileEntry(path=path, size_bytes=1, sha256="0" * 64)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "..",
        ".",
        "a/../b",
        "../b",
        "a/..",
        "/etc/passwd",
        "a//b",
        "a/",
        "a\\b",
        "..\\b",
        "C:\\b",
        "a\0b",
        "a\nb",
        "a\x7fb",
        "a\x85b",
        "a\u2028b",
        "gpj\u202e.exe",  # reads as another name than it is
        "\ud800.mp4",  # no Unicode at all
        "cafe\u0301.mp4",  # another file than caf\u00e9.mp4 on one system, the same on the next
        "\uff0e\uff0e/secret",  # fullwidth dots
        "\u2025/secret",  # two dots in one sign
        "a\uff0f..\uff0fb",  # fullwidth slashes
        "a\uff3cb",  # a fullwidth backslash
        "a" * 256,
        "/".join(["ab"] * 172),
        "/".join(["\u72d0" * 80] * 4),
    ],
)
def test_refused(path: str) -> None:
    with pytest.raises(ValidationError) as refused:
        entry(path)
    assert refused.value.errors()[0]["loc"] == ("path",)
    with pytest.raises(ValidationError):
        UploadRequest.model_validate(
            {"purpose": "adapter", "file": {"path": path, "size_bytes": 1, "sha256": "0" * 64}}
        )


@pytest.mark.parametrize(
    "path",
    [
        "a.mp4",
        "clips/001 (copy).mp4",
        "caf\u00e9.mp4",
        "\u72d0\u306e\u52d5\u753b.mp4",
        "...",
        ".hidden/..b",
        "a" * 255,
    ],
)
def test_taken(path: str) -> None:
    assert entry(path).path == path


@given(st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "a", "/", "\\", "\uff0e"])).map("".join))
def test_whatever_is_taken_stays_below_its_prefix_and_is_a_possible_key(path: str) -> None:
    try:
        taken = entry(path).path
    except ValidationError:
        return
    walked: list[str] = []
    for part in f"{LONGEST}/{taken}".split("/"):
        assert part not in ("", ".", "..")
        walked.append(part)
    assert "/".join(walked).startswith(LONGEST + "/")
    assert len("/".join(walked).encode()) <= 1024
