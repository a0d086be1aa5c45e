"""Files that a caller may fetch from the store by themselves."""

from pydantic import BaseModel

from command_api.routes.parts import Parts
from schemas.objects import StoredObject


class DownloadFile(BaseModel):
    """One file; verify `sha256` after the download."""

    path: str
    size_bytes: int
    sha256: str
    url: str
    """Works for `presign_seconds`."""


async def downloadable(parts: Parts, stored: StoredObject) -> DownloadFile:
    """The file with a URL of its own."""
    name = "".join(character for character in stored.path.rsplit("/", 1)[-1] if character.isascii())
    url = await parts.store.presign_get(stored.key, filename=name.replace('"', "") or "file")
    return DownloadFile(path=stored.path, size_bytes=stored.size_bytes, sha256=stored.sha256, url=url)
