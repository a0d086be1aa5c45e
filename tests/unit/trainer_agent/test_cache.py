"""Staged content is shared, bounded, and never trusted without a look."""

import hashlib
import os
from pathlib import Path

import pytest

from trainer_agent.cache import ContentCache


def put(cache: ContentCache, content: bytes, used_at: int) -> str:
    sha256 = hashlib.sha256(content).hexdigest()
    arriving = cache.incoming(sha256)
    arriving.write_bytes(content)
    cache.admit(arriving, sha256)
    (place,) = arriving.parent.parent.glob(f"??/{sha256}")
    os.utime(place, (used_at, used_at))
    return sha256


@pytest.fixture
def cache(tmp_path: Path) -> ContentCache:
    cache = ContentCache(tmp_path / "cache", limit_bytes=250)
    cache.prepare()
    return cache


def test_the_least_recently_used_leaves_first(cache: ContentCache) -> None:
    old, middle, new = (put(cache, bytes([number]) * 100, used_at=number) for number in (1, 2, 3))
    assert cache.holds(old, 100)  # being asked for is use
    cache.trim()
    assert cache.holds(old, 100)
    assert not cache.holds(middle, 100)
    assert cache.holds(new, 100)


def test_what_an_attempt_needs_stays_although_it_is_too_much(cache: ContentCache) -> None:
    needed = [put(cache, bytes([number]) * 100, used_at=number) for number in (1, 2, 3)]
    spare = put(cache, b"s" * 10, used_at=9)
    cache.trim(keep=needed)
    assert all(cache.holds(sha256, 100) for sha256 in needed)
    assert not cache.holds(spare, 10)
    cache.trim()
    assert sum(cache.holds(sha256, 100) for sha256 in needed) == 2


def test_a_damaged_file_is_not_held(cache: ContentCache, tmp_path: Path) -> None:
    sha256 = put(cache, b"a" * 100, used_at=1)
    target = tmp_path / "attempt" / "clip.mp4"
    cache.lay_out(sha256, target)
    assert target.read_bytes() == b"a" * 100
    target.chmod(0o644)
    target.write_bytes(b"b" * 100)  # through the hard link, as a hostile clip's decoder might
    assert not cache.holds(sha256, 100)
    assert not list((tmp_path / "cache").glob(f"??/{sha256}"))


def test_half_a_download_of_an_earlier_run_is_removed(cache: ContentCache) -> None:
    arriving = cache.incoming("0" * 64)
    arriving.write_bytes(b"half")
    cache.prepare()
    assert not arriving.exists()
