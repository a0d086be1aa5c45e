"""Settings files keep secrets readable to their role and to nobody else, and say what is wrong with them."""

import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from kinora.settings import (
    SETTINGS_VARIABLE,
    SettingsRefused,
    data_folder,
    overridden,
    read_overrides,
    read_settings,
    write_settings,
)
from projections.settings import ProjectionsSettings
from schemas.settings import PostgresSettings
from trainer_agent.settings import AgentSettings

SETTINGS = ProjectionsSettings(postgres=PostgresSettings(host="/run/x", password=SecretStr("tell nobody")))


def test_settings_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "projections.json"
    write_settings(path, SETTINGS)
    assert read_settings(ProjectionsSettings, {SETTINGS_VARIABLE: str(path)}) == SETTINGS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["projections.json"]


def test_an_unnamed_file_is_refused_with_the_remedy() -> None:
    with pytest.raises(SettingsRefused, match="KINORA_SETTINGS_FILE is not set"):
        read_settings(ProjectionsSettings, {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsRefused, match=r"absent\.json cannot be read: No such file"):
        read_settings(ProjectionsSettings, {SETTINGS_VARIABLE: str(tmp_path / "absent.json")})


def test_a_wrong_field_is_named_and_no_secret_is_quoted(tmp_path: Path) -> None:
    path = tmp_path / "projections.json"
    path.write_text('{"postgres": {"host": "h", "password": ["tell nobody"]}, "page_size": 0}')
    with pytest.raises(SettingsRefused, match=r"postgres\.password: .*page_size: ") as refusal:
        read_settings(ProjectionsSettings, {SETTINGS_VARIABLE: str(path)})
    assert "tell nobody" not in str(refusal.value)
    assert refusal.value.__cause__ is None


def test_the_data_folder_is_named_or_in_the_users_home() -> None:
    assert data_folder({"KINORA_HOME": "/srv/kinora"}) == Path("/srv/kinora")
    assert data_folder({"KINORA_HOME": "~/mine"}) == Path.home() / "mine"
    assert data_folder({"KINORA_HOME": ""}) == Path.home() / ".local/share/kinora"
    assert data_folder({}) == Path.home() / ".local/share/kinora"


def with_file(file: Path) -> ProjectionsSettings:
    kinds = {"agent": AgentSettings, "projections": ProjectionsSettings}
    return overridden(SETTINGS, "projections", file, read_overrides(file, kinds))


def test_what_people_set_goes_over_what_a_role_would_have(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    assert with_file(file) == SETTINGS
    file.write_text('{"agent": {"cache_bytes": 0}, "projections": {"page_size": 7}}')
    assert with_file(file) == SETTINGS.model_copy(update={"page_size": 7})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "must look like"),
        ('{"projections": 3}', "must look like"),
        ('{"agnet": {}}', r"no role 'agnet'; did you mean agent\? There are agent, projections"),
        (
            '{"agent": {"cash_bytes": 0}}',
            r"no field agent\.cash_bytes; did you mean cache_bytes\? .* metrics",
        ),
        ('{"agent": {"cache_bytes": "much"}}', r"agent\.cache_bytes: .*integer"),
        ('{"projections": {"postgres": {"host": "elsewhere"}}}', "postgres cannot be set; .* page_size"),
        ('{"projections": {"pages": 3}}', "there is no field projections.pages; .*page_size"),
        ('{"projections": {"page_size": 0}}', "projections.page_size: .*greater than"),
    ],
)
def test_what_cannot_be_set_is_named_before_anything_starts(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "settings.json"
    file.write_text(text)
    kinds = {"agent": AgentSettings, "projections": ProjectionsSettings}
    with pytest.raises(SettingsRefused, match=message):
        read_overrides(file, kinds)


def test_what_an_installation_decides_cannot_be_set(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"projections": {"postgres": {}}}')
    with pytest.raises(SettingsRefused, match=r"postgres cannot be set; .* page_size"):
        overridden(SETTINGS, "projections", file, {"projections": {"postgres": {}}})
