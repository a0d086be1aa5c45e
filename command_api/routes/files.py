"""What datasets and models have in common: declared, uploaded, completed, deleted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from command_api.domain.errors import NotFound
from command_api.routes.commanding import Asking
from command_api.routes.showing import show
from projections.documents import Document, DocumentView
from schemas.api import CompleteUploadBody, RegisterBody, UploadSession
from schemas.commands import Command
from schemas.commands.imports import RequestImport, RetryImport
from schemas.ids import Prefix, new_id
from schemas.objects import StoredObject

D = TypeVar("D", bound=Document)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a registration command is made of."""

    item_id: str
    owner_id: str
    body: RegisterBody
    listing: StoredObject


@dataclass(frozen=True, slots=True)
class ImportCommands:
    """The commands that import one kind of thing, and what they call its id."""

    id_field: str
    request: type[RequestImport]
    retry: type[RetryImport]


@dataclass(frozen=True, slots=True)
class Kind(Generic[D]):
    """Datasets or models: their commands, and how one is shown."""

    collection: str
    prefix: Prefix
    view: DocumentView[D]
    uploading: type[Any]
    """The phase in which files are taken."""
    register: Callable[[Declaration], Command]
    start_upload: Callable[[str, str], Command]
    complete_upload: Callable[[str, str], Command]
    imports: ImportCommands


async def register(kind: Kind[D], body: RegisterBody, asking: Asking) -> D:
    """Declare the files of a new item."""
    caller, parts = asking.caller, asking.parts
    listing = await parts.uploads.declare(caller.organization_id, body.files)
    declaration = Declaration(new_id(kind.prefix), caller.user_id, body, listing)
    outcome = await asking.execute(kind.register(declaration), body)
    item_id = outcome.events[0].stream_id
    asking.response.headers["Location"] = f"/api/v1/{kind.collection}/{item_id}"
    return await show(parts, kind.view, item_id)


async def open_session(kind: Kind[D], item_id: str, asking: Asking) -> UploadSession:
    """URLs for the next files that the store lacks; the item has one upload, however often asked."""
    caller, parts = asking.caller, asking.parts
    loaded = await parts.bus.load(item_id)
    if loaded.version == 0 or loaded.organization_id != caller.organization_id:
        raise NotFound(f"{item_id} does not exist")
    upload_id = new_id(Prefix.UPLOAD)
    if isinstance(loaded.state, kind.uploading):
        listing = loaded.state.registered.listing
        upload_id = await parts.uploads.begin(caller.organization_id, item_id, listing)
    outcome = await asking.execute(kind.start_upload(item_id, upload_id))
    for recorded in outcome.events:
        upload_id = getattr(recorded.event, "upload_id", upload_id)
    return await parts.uploads.session(upload_id, caller.organization_id)


async def complete(kind: Kind[D], item_id: str, body: CompleteUploadBody, asking: Asking) -> D:
    """Verify and file what was put; the last missing file makes the item `uploaded`."""
    caller, parts = asking.caller, asking.parts
    missing = await parts.uploads.complete(body.upload_id, item_id, caller.organization_id, body.files)
    if missing == 0:
        await asking.execute(kind.complete_upload(item_id, body.upload_id), body)
        return await show(parts, kind.view, item_id)
    item = await show(parts, kind.view, item_id)
    asking.response.headers["X-Event-Position"] = str(item.last_position)
    return item
