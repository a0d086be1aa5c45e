"""Users and organizations."""

from typing import ClassVar, Literal

from schemas.events.registry import REGISTRY, Event
from schemas.ids import OrganizationId, UserId, WorkspaceId
from schemas.secrets import SecretKind, SecretName

PERSONAL = "kinora.user."
"""How the types begin that happen in a person's own stream, which is of no organization."""

Role = Literal["owner", "admin", "member", "viewer"]


@REGISTRY.register
class UserRegistered(Event):
    """A person signed up. Both personal fields are ciphertext under that person's key."""

    TYPE: ClassVar[str] = "kinora.user.registered"
    username_ciphertext: str
    email_ciphertext: str


@REGISTRY.register
class UserLoggedIn(Event):
    """A person proved their password."""

    TYPE: ClassVar[str] = "kinora.user.logged_in"


@REGISTRY.register
class TokenFamilyRevoked(Event):
    """A refresh token was used twice, so all its descendants are void."""

    TYPE: ClassVar[str] = "kinora.user.token_family_revoked"
    family_id: str
    reason: Literal["reuse_detected", "logout"]


@REGISTRY.register
class UserErased(Event):
    """A person's key was destroyed: whatever the log holds of them personally is noise from here on."""

    TYPE: ClassVar[str] = "kinora.user.erased"
    requested_by: UserId
    """Themselves, or an operator of the installation."""


@REGISTRY.register
class OrganizationCreated(Event):
    """An organization began; a personal one at sign-up."""

    TYPE: ClassVar[str] = "kinora.organization.created"
    organization_id: OrganizationId
    personal: bool


@REGISTRY.register
class WorkspaceCreated(Event):
    """A workspace began inside an organization."""

    TYPE: ClassVar[str] = "kinora.organization.workspace_created"
    workspace_id: WorkspaceId
    name: str


@REGISTRY.register
class MemberAdded(Event):
    """A user became a member."""

    TYPE: ClassVar[str] = "kinora.organization.member_added"
    user_id: UserId
    role: Role


@REGISTRY.register
class MemberRemoved(Event):
    """A user is no member any more."""

    TYPE: ClassVar[str] = "kinora.organization.member_removed"
    user_id: UserId
    reason: Literal["erased"]


@REGISTRY.register
class SecretStored(Event):
    """A credential for a place outside was stored or replaced; its value stands in no event."""

    TYPE: ClassVar[str] = "kinora.organization.secret_stored"
    workspace_id: WorkspaceId
    name: SecretName
    kind: SecretKind


@REGISTRY.register
class SecretDeleted(Event):
    """A credential was deleted, and its value with it."""

    TYPE: ClassVar[str] = "kinora.organization.secret_deleted"
    workspace_id: WorkspaceId
    name: SecretName
