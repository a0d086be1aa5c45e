"""Reads a repository of a model hub by its HTTP interface: one list of files, then each file.

Not through the hub's own client, which would resolve and follow addresses by itself.
"""

import hashlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from command_api.imports.errors import SourceFailed
from command_api.imports.layout import wanted_of_hub
from command_api.imports.web import Credential, Web
from command_api.imports.work import BLOCK_BYTES, Fetched, Work
from schemas.imports import Collection

_REPOSITORY = re.compile(r"hf://(?P<name>[^@]+)(@(?P<revision>.+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


async def downloaded(
    uri: str, collection: Collection, web: Web, credential: Credential, work: Work
) -> list[Fetched]:
    """The files of ``hf://owner/name@revision`` that a dataset or model consists of; never code or pickles.

    Raises:
        SourceFailed: what went wrong, in the user's terms.
    """
    hub = work.settings.hub_url.rstrip("/")
    if not hub:
        raise SourceFailed(
            "this installation reaches no model hub (imports.hub_url is empty); import by URL or upload",
            code="hub_off",
        )
    found = _REPOSITORY.fullmatch(uri)
    if found is None:
        raise SourceFailed(f"{uri} names no repository", code="source_unusable")
    name, revision = found["name"], found["revision"] or "main"
    listing = await web.json(
        f"{hub}/api/{collection}/{name}/revision/{quote(revision, safe='')}?blobs=true", credential
    )
    try:
        commit = str(listing["sha"])
        files = {str(each["rfilename"]): each for each in listing["siblings"]}
    except (KeyError, TypeError):
        raise SourceFailed(f"{hub} describes {uri} in an unknown way", code="source_unusable") from None
    wanted = wanted_of_hub(files, collection)
    work.begin("fetching", sum(int(files[path].get("size") or 0) for path in wanted))
    work.expect(work.bytes_total or 0)
    folder = name if collection == "models" else f"datasets/{name}"
    fetched = []
    for path in wanted:
        target = work.new_file()
        url = f"{hub}/{folder}/resolve/{quote(commit, safe='')}/{quote(path)}"
        await web.download(url, target, work, credential)
        fetched.append(Fetched(path, _proven(uri, path, target, files[path])))
    return fetched


def _proven(uri: str, path: str, file: Path, entry: dict[str, Any]) -> Path:
    """Large files have a hash in the list."""
    declared = str((entry.get("lfs") or {}).get("sha256", ""))
    if _SHA256.fullmatch(declared):
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
        if digest.hexdigest() != declared:
            raise SourceFailed(
                f"{path} of {uri} is not what the hub lists; try again",
                code="source_unusable",
                retryable=True,
            )
    return file
