"""Imports as routes see them: judged before anything is recorded, retried, and how far they are."""

from ipaddress import ip_address

from command_api.auth.tokens import OPERATE, Principal
from command_api.credentials.secrets import SecretPlace
from command_api.domain.errors import Conflict, Forbidden, Invalid, NotFound
from command_api.domain.import_sources import check_secret, default_name, folder_of, host_of, parsed_source
from command_api.domain.imports import ImportFailed, Importing
from command_api.handlers.base import Loaded
from command_api.imports import progress
from command_api.imports.folders import is_below
from command_api.network.addresses import is_permitted, networks
from command_api.routes.commanding import Asking
from command_api.routes.files import D, Kind
from command_api.routes.parts import Parts
from command_api.routes.reading import Reading
from command_api.routes.showing import show
from schemas.api import ImportBody
from schemas.ids import new_id
from schemas.imports import ImportProgress, ImportSource


async def request(kind: Kind[D], body: ImportBody, asking: Asking) -> D:
    """Ask for files from elsewhere; the orchestrator fetches them."""
    caller, parts = asking.caller, asking.parts
    source = parsed_source(body.source.uri, body.source.secret)
    _check_source(source, caller, parts)
    if source.secret is not None:
        place = SecretPlace(caller.organization_id, caller.workspace_id, source.secret)
        check_secret(source, (await parts.secrets.find(place)).kind)
    command = kind.imports.request.model_validate(
        {
            kind.imports.id_field: new_id(kind.prefix),
            "name": body.name or default_name(source)[:200],
            "description": body.description,
            "owner_id": caller.user_id,
            "source": source,
        }
    )
    outcome = await asking.execute(command, body)
    item_id = outcome.events[0].stream_id
    asking.response.headers["Location"] = f"/api/v1/{kind.collection}/{item_id}"
    return await show(parts, kind.view, item_id)


async def retry(kind: Kind[D], item_id: str, asking: Asking) -> D:
    """Once more, from the same source."""
    caller, parts = asking.caller, asking.parts
    loaded = _own(await parts.bus.load(item_id), item_id, caller.organization_id)
    if isinstance(loaded.state, ImportFailed):
        _check_source(loaded.state.requested.source, caller, parts)
    await asking.execute(kind.imports.retry.model_validate({kind.imports.id_field: item_id}))
    return await show(parts, kind.view, item_id)


async def follow(item_id: str, reading: Reading) -> ImportProgress:
    """How far the running import is."""
    parts = reading.parts
    await reading.from_log()
    loaded = _own(await parts.bus.load(item_id), item_id, reading.organization_id)
    if not isinstance(loaded.state, Importing):
        raise Conflict(f"{item_id} is not being imported; its status says how it stands", code="no_import")
    return await progress.read(parts.pool, reading.organization_id, item_id, loaded.state.attempt)


def _own(loaded: Loaded, item_id: str, organization_id: str) -> Loaded:
    if loaded.version == 0 or loaded.organization_id != organization_id:
        raise NotFound(f"{item_id} does not exist")
    return loaded


def _check_source(source: ImportSource, caller: Principal, parts: Parts) -> None:
    """What can be known here; names are resolved and folders opened only by the orchestrator."""
    settings, roots = parts.settings.imports, parts.settings.import_roots
    match source.kind:
        case "folder":
            # The roots are the installation's, so what lies there may be anybody's.
            if OPERATE not in caller.scopes:
                raise Forbidden(
                    f"folders of the server are imported by its operator only ({OPERATE}); upload the files",
                    code="missing_scope",
                )
            if not is_below(folder_of(source), roots):
                raise _refused(
                    "folder_outside_roots",
                    "the folder is not below one that may be imported;"
                    f" {', '.join(roots) or 'none may'} (KINORA_IMPORT_ROOTS)",
                )
        case "hub" if not settings.hub_url:
            raise _refused("hub_off", "this installation reaches no model hub; import by URL, or upload")
        case "url":
            try:
                address = ip_address(host_of(source) or "")
            except ValueError:
                return
            if not is_permitted(address, networks(settings.allowed_networks)):
                raise _refused(
                    "address_refused",
                    "uri names an address that is not on the public Internet; upload the files, or have the"
                    " operator allow its network (imports.allowed_networks)",
                )


def _refused(code: str, message: str) -> Invalid:
    return Invalid.field("/source/uri", code, message)
