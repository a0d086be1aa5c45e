"""Archives that want to write elsewhere, link, collide, lie about their size, or eat the disk."""

import bz2
import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_api.imports.archives import sniffed, unpack
from command_api.imports.errors import SourceFailed
from command_api.imports.work import Work
from command_api.settings import ImportSettings

FILES = {"captions.jsonl": b"{}", "clips/a.mp4": b"a" * 3000, "clips/b.mp4": b""}


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def tarred(files: dict[str, bytes], *members: tarfile.TarInfo) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in members:
            archive.addfile(member)
    return packed.getvalue()


def member(name: str, kind: bytes, **fields: str) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for field, value in fields.items():
        setattr(made, field, value)
    return made


@pytest.fixture
def work(tmp_path: Path) -> Work:
    settings = ImportSettings(max_bytes=10**6, max_files=10, reserve_bytes=0)
    (tmp_path / "work").mkdir()
    return Work(settings, tmp_path / "work")


def unpacked(content: bytes, work: Work) -> dict[str, bytes]:
    archive = work.folder / "archive"
    archive.write_bytes(content)
    found = unpack(archive, work)
    assert all(each.file.parent == work.folder for each in found)
    return {each.path: each.file.read_bytes() for each in found}


def refused(content: bytes, work: Work, code: str) -> str:
    with pytest.raises(SourceFailed) as caught:
        unpacked(content, work)
    assert caught.value.code == code
    return caught.value.message


PACKERS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "zip": zipped,
    "tar": tarred,
    "tar.gz": lambda files: gzip.compress(tarred(files)),
    "tar.bz2": lambda files: bz2.compress(tarred(files)),
}
every_format = pytest.mark.parametrize("kind", PACKERS)


@every_format
def test_sound_archives_are_told_by_their_first_bytes(kind: str, work: Work) -> None:
    content = PACKERS[kind](FILES)
    assert unpacked(content, work) == FILES
    assert sniffed(work.folder / "archive") == kind


@every_format
@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "a//b", "x" * 300, "line\nbreak", "cafe\u0301"],
)
def test_names_that_lead_elsewhere(kind: str, name: str, work: Work) -> None:
    refused(PACKERS[kind]({**FILES, name: b"x"}), work, "archive_unsafe")
    assert not (work.folder.parent / "evil").exists()


@every_format
def test_names_that_some_file_systems_take_for_one(kind: str, work: Work) -> None:
    assert "case" in refused(PACKERS[kind]({"a.mp4": b"1", "A.MP4": b"2"}), work, "archive_unsafe")


@pytest.mark.parametrize(
    "evil",
    [
        member("link", tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("link", tarfile.LNKTYPE, linkname="captions.jsonl"),
        member("pipe", tarfile.FIFOTYPE),
        member("device", tarfile.CHRTYPE),
        member("sparse", tarfile.GNUTYPE_SPARSE),
    ],
    ids=lambda each: each.name,
)
def test_tars_with_more_than_files(evil: tarfile.TarInfo, work: Work) -> None:
    with pytest.raises(SourceFailed) as caught:
        unpacked(tarred(FILES, evil), work)
    assert caught.value.code in ("archive_unsafe", "archive_damaged")


def test_zips_with_links(work: Work) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    refused(packed.getvalue(), work, "archive_unsafe")


def test_encrypted_zips(work: Work) -> None:
    content = bytearray(zipped({"a": b"secret"}))
    for place in (content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8):
        content[place] |= 1
    assert "encrypted" in refused(bytes(content), work, "archive_unsafe")


@every_format
def test_bombs_end_where_the_limit_is(kind: str, work: Work) -> None:
    bomb = PACKERS[kind]({"zeros": bytes(5 * 10**6)})
    refused(bomb, work, "import_too_large")
    written = sum(file.stat().st_size for file in work.folder.iterdir() if file.name != "archive")
    assert written <= work.settings.max_bytes


@every_format
def test_too_many_files(kind: str, work: Work) -> None:
    refused(PACKERS[kind]({f"{number}": b"" for number in range(11)}), work, "too_many_files")


def test_a_zip_that_lies_about_its_size(work: Work) -> None:
    content = bytearray(zipped({"zeros": bytes(2 * 10**6)}))
    directory = content.index(b"PK\x01\x02")
    struct.pack_into("<L", content, directory + 24, 10)  # says 10 bytes
    assert len(content) < 10_000
    with pytest.raises(SourceFailed) as caught:
        unpacked(bytes(content), work)
    assert caught.value.code in ("archive_damaged", "import_too_large")


def test_a_tar_header_that_claims_gigabytes_of_metadata(work: Work) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 8 * 2**30
    content = header.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    refused(gzip.compress(content), work, "archive_unsafe")


@pytest.mark.parametrize("content", [b"", b"plain text", b"\x28\xb5\x2f\xfd" + bytes(600), b"<html>" * 200])
def test_what_is_no_archive(content: bytes, work: Work) -> None:
    assert "zip" in refused(content, work, "archive_unknown")


@every_format
def test_archives_that_are_cut_off(kind: str, work: Work) -> None:
    content = PACKERS[kind]({"a.mp4": bytes(range(256)) * 2000})
    assert refused(content[: len(content) // 2], work, "archive_damaged")


@pytest.mark.parametrize("head", [b"PK\x03\x04", b"\x1f\x8b\x08", b"BZh9", bytes(257) + b"ustar\x0000"])
@given(noise=st.binary(max_size=2000))
def test_noise_is_refused_and_nothing_else_happens(
    head: bytes, noise: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    work = Work(ImportSettings(max_bytes=10**6, reserve_bytes=0), tmp_path_factory.mktemp("noise"))
    archive = work.folder / "archive"
    archive.write_bytes(head + noise)
    with pytest.raises(SourceFailed) as caught:
        unpack(archive, work)
    assert caught.value.code.startswith(("archive_", "import_too"))


def test_what_desktops_add_is_left_out(work: Work) -> None:
    junk = {"__MACOSX/a": b"x", "clips/.DS_Store": b"x", "Thumbs.db": b"x"}
    assert unpacked(zipped(FILES | junk), work) == FILES


def test_an_import_that_was_ended_stops_in_the_middle(work: Work) -> None:
    work.ended.set()
    refused(zipped(FILES), work, "import_cancelled")
