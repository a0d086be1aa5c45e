"""Commands on users and organizations."""

from typing import ClassVar, Literal

from schemas.commands.base import Command
from schemas.ids import OrganizationId, UserId, WorkspaceId
from schemas.secrets import SecretKind, SecretName


class RegisterUser(Command):
    """Sign a person up; the two personal fields are already ciphertext."""

    TYPE: ClassVar[str] = "register_user"
    user_id: UserId
    username_ciphertext: str
    email_ciphertext: str


class CreateOrganization(Command):
    """Begin an organization with one owner and one workspace."""

    TYPE: ClassVar[str] = "create_organization"
    organization_id: OrganizationId
    workspace_id: WorkspaceId
    owner_id: UserId
    personal: bool


class SignUp(Command):
    """Register a person together with their personal organization and its first workspace, or neither."""

    TYPE: ClassVar[str] = "sign_up"
    user_id: UserId
    organization_id: OrganizationId
    workspace_id: WorkspaceId
    username_ciphertext: str
    email_ciphertext: str


class RecordLogin(Command):
    """A password was proved."""

    TYPE: ClassVar[str] = "record_login"
    user_id: UserId


class RevokeTokenFamily(Command):
    """A refresh token was used twice, or its owner logged out."""

    TYPE: ClassVar[str] = "revoke_token_family"
    user_id: UserId
    family_id: str
    reason: Literal["reuse_detected", "logout"]


class EraseUser(Command):
    """Forget a person for good, in every organization that they belong to."""

    TYPE: ClassVar[str] = "erase_user"
    user_id: UserId
    organization_ids: tuple[OrganizationId, ...]
    requested_by: UserId


class RemoveMember(Command):
    """End a membership; somebody who is none changes nothing."""

    TYPE: ClassVar[str] = "remove_member"
    organization_id: OrganizationId
    user_id: UserId
    reason: Literal["erased"]


class StoreSecret(Command):
    """Keep or replace a credential; its value travels beside the command, encrypted."""

    TYPE: ClassVar[str] = "store_secret"
    organization_id: OrganizationId
    workspace_id: WorkspaceId
    name: SecretName
    kind: SecretKind


class DeleteSecret(Command):
    TYPE: ClassVar[str] = "delete_secret"
    organization_id: OrganizationId
    workspace_id: WorkspaceId
    name: SecretName
