"""OpenTelemetry's standard variables, as their specification means them."""

import pytest

from kinora.settings import SettingsRefused, telemetry_settings


def test_without_an_endpoint_nothing_leaves() -> None:
    assert telemetry_settings({"OTEL_SERVICE_NAME": "x"}).endpoint is None


def test_a_base_gets_its_path_and_a_traces_endpoint_is_taken_as_it_is() -> None:
    base = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"}
    assert telemetry_settings(base).endpoint == "http://collector:4318/v1/traces"
    exact = base | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://other/x"}
    assert telemetry_settings(exact).endpoint == "https://other/x"
    assert telemetry_settings(exact | {"OTEL_SDK_DISABLED": "true"}).endpoint is None


def test_timeouts_are_milliseconds_and_headers_stay_secret() -> None:
    settings = telemetry_settings(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=canary-value",
        }
    )
    assert settings.timeout_seconds == 2.5
    assert settings.headers["api-key"].get_secret_value() == "canary-value"
    assert "canary-value" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingsRefused, match=name):
        telemetry_settings({name: value})
