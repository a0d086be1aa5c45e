"""Users and organizations: sign-up makes both or neither."""

from collections.abc import Mapping

from command_api.domain import organization, user
from command_api.handlers.base import (
    Changes,
    Context,
    Handler,
    StreamEvents,
    Streams,
    reading,
    single_aggregate,
)
from schemas.commands import Command
from schemas.commands.identity import (
    CreateOrganization,
    DeleteSecret,
    EraseUser,
    RecordLogin,
    RegisterUser,
    RemoveMember,
    RevokeTokenFamily,
    SignUp,
    StoreSecret,
)


@reading(lambda command: (command.user_id, command.organization_id))
def sign_up(command: SignUp, _context: Context, streams: Streams) -> Changes:
    person = streams.load(command.user_id)
    home = streams.load(command.organization_id)
    register = RegisterUser(
        user_id=command.user_id,
        username_ciphertext=command.username_ciphertext,
        email_ciphertext=command.email_ciphertext,
    )
    create = CreateOrganization(
        organization_id=command.organization_id,
        workspace_id=command.workspace_id,
        owner_id=command.user_id,
        personal=True,
    )
    return [
        StreamEvents(command.user_id, person.version, user.decide(person.state, register)),
        StreamEvents(command.organization_id, home.version, organization.decide(home.state, create)),
    ]


def erase_user(command: EraseUser, _context: Context, streams: Streams) -> Changes:
    """Everywhere or nowhere. The key and all rows go in the same transaction (`ErasureRow`)."""
    person = streams.load(command.user_id)
    changes = [StreamEvents(command.user_id, person.version, user.decide(person.state, command))]
    for organization_id in command.organization_ids:
        home = streams.load(organization_id)
        leave = RemoveMember(organization_id=organization_id, user_id=command.user_id, reason="erased")
        changes.append(StreamEvents(organization_id, home.version, organization.decide(home.state, leave)))
    return changes


HANDLERS: Mapping[type[Command], Handler] = {
    SignUp: sign_up,
    EraseUser: erase_user,
    RegisterUser: single_aggregate(user.decide, lambda command: command.user_id),
    RecordLogin: single_aggregate(user.decide, lambda command: command.user_id),
    RevokeTokenFamily: single_aggregate(user.decide, lambda command: command.user_id),
    **{
        command: single_aggregate(organization.decide, lambda command: command.organization_id)
        for command in (CreateOrganization, RemoveMember, StoreSecret, DeleteSecret)
    },
}
