"""The only place that reads environment and settings files; packages get what they need as arguments."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from opentelemetry.util.re import parse_env_headers
from pydantic import Field, SecretStr, ValidationError

from kinora.local.private_file import revealed_json, write_private
from schemas.base import Message
from schemas.errors import KinoraError
from schemas.naming import instead_of

HOME_VARIABLE = "KINORA_HOME"
IMPORT_ROOTS_VARIABLE = "KINORA_IMPORT_ROOTS"
"""Folders that the operator may import from, separated by colons; none when unset."""
SETTINGS_VARIABLE = "KINORA_SETTINGS_FILE"
"""Path of a role's settings as JSON: `kinora up` writes one per role, production mounts its own."""

S = TypeVar("S", bound=Message)


class SettingsRefused(KinoraError):
    """Settings that are missing or wrong."""

    code = "settings"


class TelemetrySettings(Message):
    """Where traces go. Named by OpenTelemetry's own variables, so that one set serves every program."""

    endpoint: str | None = None
    """Of OTLP over HTTP, its path included; None: no traces leave this process."""
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    timeout_seconds: float = Field(5.0, gt=0)
    """Of one export; OpenTelemetry's own default of 10 s would hold up a stop."""
    sample_ratio: float = Field(1.0, ge=0, le=1)
    """Share of the traces begun here; whoever hands in a traceparent decides for its own trace."""
    resource: dict[str, str] = Field(default_factory=dict)
    """Attributes of everything that this process exports."""


def telemetry_settings(environment: Mapping[str, str] = os.environ) -> TelemetrySettings:
    """What the standard variables `OTEL_…` say.

    Raises:
        SettingsRefused: when one of them has no possible value.
    """
    value = {name: text for name, text in environment.items() if name.startswith("OTEL_") and text}
    endpoint = value.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if endpoint is None and (base := value.get("OTEL_EXPORTER_OTLP_ENDPOINT")):
        endpoint = base.rstrip("/") + "/v1/traces"
    if value.get("OTEL_SDK_DISABLED", "").lower() == "true":
        endpoint = None
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise SettingsRefused(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is {endpoint!r}; name an address that begins with http:// or https://"
        )
    headers = value.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS", value.get("OTEL_EXPORTER_OTLP_HEADERS", ""))
    resource = parse_env_headers(value.get("OTEL_RESOURCE_ATTRIBUTES", ""), liberal=True)
    timeout = _number(value, "OTEL_EXPORTER_OTLP_TIMEOUT", 5000.0) / 1000
    ratio = _number(value, "OTEL_TRACES_SAMPLER_ARG", 1.0)
    if not 0 <= ratio <= 1 or timeout <= 0:
        raise SettingsRefused(
            "OTEL_TRACES_SAMPLER_ARG goes from 0 to 1, and OTEL_EXPORTER_OTLP_TIMEOUT is over 0 ms"
        )
    return TelemetrySettings(
        endpoint=endpoint,
        headers={name: SecretStr(text) for name, text in parse_env_headers(headers, liberal=True).items()},
        timeout_seconds=timeout,
        sample_ratio=ratio,
        resource=resource,
    )


def _number(value: Mapping[str, str], name: str, standard: float) -> float:
    try:
        return float(value.get(name, standard))
    except ValueError:
        raise SettingsRefused(f"{name} is {value[name]!r}; give a number") from None


def data_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where everything of this installation lives: KINORA_HOME, or a folder in the user's home."""
    named = environment.get(HOME_VARIABLE)
    folder = Path(named).expanduser() if named else Path.home() / ".local" / "share" / "kinora"
    return folder.absolute()


def import_roots(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The folders that `kinora up` lets the operator import from.

    Raises:
        SettingsRefused: when one is not an absolute path of a folder.
    """
    roots = [root for root in environment.get(IMPORT_ROOTS_VARIABLE, "").split(os.pathsep) if root]
    for root in roots:
        if not Path(root).is_absolute() or not Path(root).is_dir() or Path(root).resolve() == Path("/"):
            raise SettingsRefused(
                f"{IMPORT_ROOTS_VARIABLE} names {root}, which is no absolute path of a folder below /;"
                " correct it"
            )
    return tuple(roots)


def read_settings(kind: type[S], environment: Mapping[str, str] = os.environ) -> S:
    """The settings file that the environment names.

    Raises:
        SettingsRefused: when it is not named, cannot be read, or a field is wrong.
    """
    named = environment.get(SETTINGS_VARIABLE)
    if not named:
        raise SettingsRefused(
            f"{SETTINGS_VARIABLE} is not set; set it to the path of a JSON file with {kind.__name__},"
            " or run `kinora up`, which runs every role with its own"
        )
    try:
        return kind.model_validate_json(Path(named).read_text())
    except OSError as error:
        raise SettingsRefused(f"{SETTINGS_VARIABLE}={named} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        # Neither message nor cause may quote the input: it holds secrets.
        raise SettingsRefused(f"{named} is not valid {kind.__name__}: {_wrong(error)}") from None


Overrides = Mapping[str, Mapping[str, Any]]
"""What people set, by role and field: ``{"agent": {"cache_bytes": 0}}``."""


def read_overrides(file: Path, kinds: Mapping[str, type[Message]]) -> Overrides:
    """What the data folder's `file` says, of roles whose settings are of `kinds`; nothing when there is none.

    Raises:
        SettingsRefused: when the file cannot be read, or a role or field is unknown or wrong.
    """
    try:
        said = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingsRefused(f"{file} cannot be read: {error}; correct or remove it") from error
    if not isinstance(said, dict):
        raise SettingsRefused(f'{file} must look like {{"agent": {{"field": value}}}}; correct or remove it')
    for role, fields in said.items():
        if role not in kinds:
            raise SettingsRefused(f"{file}: there is no role {role[:80]!r}{instead_of(role, kinds)}")
        if not isinstance(fields, dict):
            raise SettingsRefused(f'{file} must look like {{"{role}": {{"field": value}}}}; correct it')
        # Fields that have no default are decided for each installation.
        free = [name for name, field in kinds[role].model_fields.items() if not field.is_required()]
        for name in fields:
            _refuse_unknown(file, role, name, kinds[role], free)
        _refuse_wrong(file, role, fields, kinds[role])
    return said


def overridden(settings: S, role: str, file: Path, overrides: Overrides) -> S:
    """`settings` with what `overrides`, read from `file`, say for `role`.

    What `kinora up` decides by itself (addresses, secrets, ids) cannot be set there.

    Raises:
        SettingsRefused: when a field is not to be set, or does not go together with the others.
    """
    fields, kind = overrides.get(role, {}), type(settings)
    free = [name for name in kind.model_fields if name not in settings.model_fields_set]
    for name in fields:
        _refuse_unknown(file, role, name, kind, free)
    try:
        return kind.model_validate(settings.model_dump() | dict(fields))
    except ValidationError as error:
        raise SettingsRefused(f"{file}: {role}.{_wrong(error)}") from None


def _refuse_unknown(file: Path, role: str, name: str, kind: type[Message], free: Sequence[str]) -> None:
    if name not in kind.model_fields:
        raise SettingsRefused(f"{file}: there is no field {role}.{name[:80]}{instead_of(name, free)}")
    if name not in free:
        raise SettingsRefused(
            f"{file}: {role}.{name} cannot be set; what can be set is {', '.join(free) or 'nothing'}"
        )


def _refuse_wrong(file: Path, role: str, fields: Mapping[str, Any], kind: type[Message]) -> None:
    try:
        kind.model_validate(fields)
    except ValidationError as error:
        # What is missing is decided later, and is no fault of these.
        if wrong := _wrong(error, but=("missing",)):
            raise SettingsRefused(f"{file}: {role}.{wrong}") from None


def write_settings(path: Path, settings: Message) -> None:
    """Write a role's settings, secrets revealed, for `read_settings`; readable by the owner only."""
    write_private(path, revealed_json(settings))


def _wrong(error: ValidationError, *, but: Collection[str] = ()) -> str:
    return "; ".join(
        f"{'.'.join(map(str, part['loc'])) or 'file'}: {part['msg']}"
        for part in error.errors(include_input=False, include_url=False)
        if part["type"] not in but or len(part["loc"]) > 1
    )
