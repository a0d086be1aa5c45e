"""Folders of the server, foreign buckets and model hubs, each as a hostile place."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from command_api.imports import buckets, folders, hub
from command_api.imports.errors import SourceFailed
from command_api.imports.web import Credential, Web
from command_api.imports.work import Fetched, Work
from command_api.objects import ObjectStore
from command_api.settings import ImportSettings
from schemas.api import SecretBody
from schemas.imports import Collection
from schemas.settings import S3Settings
from tests.integration.imports.origin import Origin

CANARY = "canary-c2a9"


def contents(found: list[Fetched]) -> dict[str, bytes]:
    return {each.path: each.file.read_bytes() for each in found}


# ---- folders ------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "clips"
    (folder / "more").mkdir(parents=True)
    (folder / "captions.jsonl").write_bytes(b"{}")
    (folder / "more" / "a.mp4").write_bytes(b"a")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    return tmp_path / "root"


def refused(path: Path, root: Path, work: Work, code: str) -> None:
    with pytest.raises(SourceFailed) as caught:
        folders.copied(str(path), [str(root)], work)
    assert caught.value.code == code, caught.value.message
    assert not any(file.read_bytes() == b"secret" for file in work.folder.iterdir())


def test_a_folder_below_a_root(root: Path, work: Work) -> None:
    found = folders.copied(str(root / "clips"), [str(root)], work)
    assert contents(found) == {"captions.jsonl": b"{}", "more/a.mp4": b"a"}
    assert contents(folders.copied(f"{root}/clips/more/a.mp4", [str(root)], work)) == {"a.mp4": b"a"}


def test_links_inside_count_and_links_outside_do_not(root: Path, work: Work, tmp_path: Path) -> None:
    (root / "blobs").mkdir()
    (root / "blobs" / "b").write_bytes(b"b")
    (root / "clips" / "b.mp4").symlink_to("../blobs/b")
    assert contents(folders.copied(str(root / "clips"), [str(root)], work))["b.mp4"] == b"b"
    (root / "entry").symlink_to(root / "clips")
    assert "captions.jsonl" in contents(folders.copied(str(root / "entry"), [str(root)], work))
    (root / "clips" / "out.mp4").symlink_to(tmp_path / "outside" / "secret")
    refused(root / "clips", root, work, "folder_unsafe")
    (root / "way").symlink_to(tmp_path / "outside")
    refused(root / "way", root, work, "folder_outside_roots")
    refused(root / "way" / "secret", root, work, "folder_outside_roots")


def test_other_places(root: Path, work: Work, tmp_path: Path) -> None:
    for path in (tmp_path / "outside", Path("/etc"), root / ".." / "outside", Path(f"{root}2")):
        refused(path, root, work, "folder_outside_roots")
    refused(root / "nothing", root, work, "source_missing")
    with pytest.raises(SourceFailed) as caught:
        folders.copied(str(root), [], work)
    assert caught.value.code == "folder_outside_roots"


def test_pipes_devices_and_looping_links(root: Path, work: Work) -> None:
    os.mkfifo(root / "clips" / "pipe")
    refused(root / "clips", root, work, "folder_unsafe")
    refused(root / "clips" / "pipe", root, work, "folder_unsafe")
    (root / "clips" / "pipe").unlink()
    (root / "clips" / "loop").symlink_to(root / "clips")
    refused(root / "clips", root, work, "folder_unsafe")


def test_a_folder_swapped_for_a_link_meanwhile(
    root: Path, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the judgement and the opening, which is when an attacker would swap it."""
    judged = os.path.realpath(root / "clips")
    (root / "clips").rename(root / "old")
    (root / "clips").symlink_to(tmp_path / "outside")
    with pytest.raises(SourceFailed) as caught, folders._opened(str(root), judged + "/secret"):
        pass
    assert caught.value.code == "folder_unsafe"


def test_a_root_is_no_prefix_of_names(root: Path) -> None:
    assert folders.is_below("/srv/data/x", ["/srv/data/"])
    assert folders.is_below("/srv/data", ["/srv/data"])
    for path in ("/srv/database", "/srv", "/srv/data/../x", "/"):
        assert not folders.is_below(path, ["/srv/data"])


# ---- buckets ------------------------------------------------------------------------------------------


def keys(s3: S3Settings, **changed: str) -> SecretBody:
    given = {"access_key": s3.access_key, "endpoint_url": s3.endpoint_url, "region": s3.region}
    return SecretBody.model_validate(
        {"kind": "s3", "value": s3.secret_key.get_secret_value(), **given, **changed}
    )


@pytest.fixture
def own(s3: S3Settings) -> S3Settings:
    """Kinora's bucket, as far as these tests go."""
    return s3.model_copy(update={"bucket": "kinora-own"})


async def test_a_prefix_of_a_foreign_bucket(s3: S3Settings, own: S3Settings, work: Work) -> None:
    files = {"v1/captions.jsonl": b"{}", "v1/clips/a.mp4": os.urandom(3_000_00), "v10/other": b"x"}
    async with ObjectStore(s3) as store:
        for key, content in files.items():
            await store.put_bytes(key, content)
    for prefix in ("v1", "v1/"):
        found = await buckets.downloaded(f"s3://{s3.bucket}/{prefix}", keys(s3), own, work)
        assert contents(found) == {"captions.jsonl": b"{}", "clips/a.mp4": files["v1/clips/a.mp4"]}
    assert work.bytes_done == work.bytes_total == 300_002


async def test_buckets_that_cannot_be_read(s3: S3Settings, own: S3Settings, work: Work) -> None:
    async with ObjectStore(s3) as store:
        await store.put_bytes("v1/a", b"a" * 10)
    uri = f"s3://{s3.bucket}/v1"
    small = Work(work.settings.model_copy(update={"max_bytes": 5}), work.folder)
    strict = Work(ImportSettings(reserve_bytes=0), work.folder)
    named = s3.endpoint_url.replace("127.0.0.1", "localhost")
    for at, secret, own_settings, given, code in (
        ("s3://no-such-bucket/v1", keys(s3), own, work, "source_missing"),
        (uri, keys(s3, value=CANARY), own, work, "source_refused"),
        (uri, keys(s3), s3, work, "own_store_refused"),
        (uri, keys(s3), own, small, "import_too_large"),
        (uri, keys(s3, endpoint_url=named), own, strict, "address_refused"),
    ):
        with pytest.raises(SourceFailed) as caught:
            await buckets.downloaded(at, secret, own_settings, given)
        assert caught.value.code == code, (caught.value.message, at)
        assert CANARY not in caught.value.message


# ---- hubs ---------------------------------------------------------------------------------------------

REPOSITORY = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"code",
    "README.md": b"# hello",
}


def describe(files: dict[str, bytes]) -> bytes:
    siblings = [
        {"rfilename": name, "size": len(content)}
        | ({"lfs": {"sha256": hashlib.sha256(content).hexdigest()}} if "safetensors" in name else {})
        for name, content in files.items()
    ]
    return json.dumps({"sha": "c0ffee", "siblings": siblings}).encode()


def at_hub(origin: Origin, work: Work) -> Work:
    return Work(work.settings.model_copy(update={"hub_url": origin.url}), work.folder)


async def pulled(
    uri: str, work: Work, collection: Collection = "models", token: str = ""
) -> dict[str, bytes]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with Web(work.settings) as web:
        return contents(await hub.downloaded(uri, collection, web, Credential(headers), work))


async def test_a_model_of_a_hub(origin: Origin, work: Work) -> None:
    origin.serve("/api/models/acme/tiny/revision/refs%2Fpr%2F1", describe(REPOSITORY))
    for name, content in REPOSITORY.items():
        origin.serve(f"/acme/tiny/resolve/c0ffee/{name}", content)
    found = await pulled("hf://acme/tiny@refs/pr/1", at_hub(origin, work), token=CANARY)
    assert found == {
        name: REPOSITORY[name] for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    asked = [path.rsplit("/", 1)[-1] for path in origin.paths()]
    assert not {"pytorch_model.bin", "modeling.py"} & set(asked)
    assert {headers["Authorization"] for _, headers in origin.seen} == {f"Bearer {CANARY}"}


async def test_a_dataset_of_a_hub(origin: Origin, work: Work) -> None:
    files = {"captions.jsonl": b"{}", "clips/a b.mp4": b"a"}
    origin.serve("/api/datasets/acme/clips/revision/main", describe(files))
    origin.serve("/datasets/acme/clips/resolve/c0ffee/captions.jsonl", files["captions.jsonl"])
    origin.serve("/datasets/acme/clips/resolve/c0ffee/clips/a%20b.mp4", files["clips/a b.mp4"])
    assert await pulled("hf://acme/clips", at_hub(origin, work), "datasets") == files


async def test_hubs_that_answer_badly(origin: Origin, work: Work) -> None:
    origin.serve("/api/models/acme/odd/revision/main", b"[]")
    origin.serve("/api/models/acme/html/revision/main", b"<html>")
    origin.serve("/api/models/acme/pickled/revision/main", describe({"config.json": b"", "model.bin": b""}))
    origin.serve("/api/models/acme/false/revision/main", describe(REPOSITORY))
    for name in REPOSITORY:
        origin.serve(f"/acme/false/resolve/c0ffee/{name}", b"something else")
    for uri, code in (
        ("hf://acme/none", "source_missing"),
        ("hf://acme/odd", "source_unusable"),
        ("hf://acme/html", "source_unusable"),
        ("hf://acme/pickled", "no_checkpoint"),
        ("hf://acme/false", "source_unusable"),
    ):
        with pytest.raises(SourceFailed) as caught:
            await pulled(uri, at_hub(origin, work))
        assert caught.value.code == code, uri
    with pytest.raises(SourceFailed) as caught:
        await pulled("hf://acme/tiny", work)
    assert caught.value.code == "hub_off"
