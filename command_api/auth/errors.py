"""Why somebody is not let in.

AuthError             answered with 401
├── TokenMissing
├── TokenExpired
├── TokenInvalid      also a refresh token that was revoked
├── TicketInvalid     for the feed; used, too old, or never one
├── WrongCredentials  unknown user or wrong password; never says which
├── EnrolmentTokenUnknown, EnrolmentTokenExpired   a node that wants to join
└── ProofInvalid, ProofExpired                     a node that wants to join, or its next JWT
"""

from schemas.errors import KinoraError


class AuthError(KinoraError):
    """The caller could not prove who they are."""

    code = "unauthenticated"


class TokenMissing(AuthError):
    code = "token_missing"


class TokenExpired(AuthError):
    code = "token_expired"


class TokenInvalid(AuthError):
    code = "token_invalid"


class TicketInvalid(AuthError):
    code = "ticket_invalid"


class WrongCredentials(AuthError):
    code = "wrong_credentials"


class EnrolmentTokenUnknown(AuthError):
    code = "enrolment_token_unknown"


class EnrolmentTokenExpired(AuthError):
    code = "enrolment_token_expired"


class ProofInvalid(AuthError):
    code = "proof_invalid"


class ProofExpired(AuthError):
    code = "proof_expired"
