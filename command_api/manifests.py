"""Reads manifests, which agents wrote and nobody has checked yet."""

import asyncio
import hashlib

from pydantic import ValidationError

from command_api.objects import ObjectMissing, ObjectStore
from schemas.datasets import MAX_MANIFEST_BYTES, Manifest
from schemas.objects import StoredObject


async def read_manifest(store: ObjectStore, stored: StoredObject) -> Manifest | str:
    """The manifest, or why it cannot be used."""
    if stored.size_bytes > MAX_MANIFEST_BYTES:
        return f"its manifest {stored.key} is larger than {MAX_MANIFEST_BYTES} bytes"
    try:
        body = await store.get_bytes(stored.key, limit=MAX_MANIFEST_BYTES)
    except ObjectMissing:
        return f"its manifest {stored.key} is not in the store"
    # Off the loop, which answers others meanwhile.
    return await asyncio.to_thread(_checked, stored, body)


def _checked(stored: StoredObject, body: bytes) -> Manifest | str:
    if hashlib.sha256(body).hexdigest() != stored.sha256:
        return f"its manifest {stored.key} is not what was validated"
    try:
        manifest = Manifest.model_validate_json(body)
    except ValidationError as error:
        return f"its manifest cannot be read: {error.error_count()} problems"
    if not manifest.examples:
        return "it has no examples"
    if all(example.split == "validation" for example in manifest.examples):
        return "all of its examples are for validation"
    paths = {clip.path for clip in manifest.clips}
    if unknown := next((each for each in manifest.examples if each.clip and each.clip not in paths), None):
        return f"{unknown.where} names {unknown.clip}, which is not among its clips"
    return manifest
