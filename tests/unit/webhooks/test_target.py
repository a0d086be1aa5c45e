"""What an installation lets webhooks reach, told before anybody connects."""

import pytest

from command_api.domain.errors import Invalid
from command_api.settings import WebhookSettings
from command_api.webhooks.target import check_target

PUBLIC = WebhookSettings()
LOCAL = WebhookSettings(allowed_networks=("127.0.0.0/8",))


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.org/kinora",
        "https://hooks.example.org:8443/a",
        "https://93.184.215.14/",
        "https://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/x",
    ],
)
def test_https_on_the_internet_is_taken(url: str) -> None:
    check_target(url, PUBLIC)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://hooks.example.org/", "url_not_https"),
        ("https://hooks.example.org:25/", "port_refused"),
        ("https://127.0.0.1/", "address_refused"),
        ("https://169.254.169.254/latest/meta-data", "address_refused"),
        ("https://[::1]/", "address_refused"),
        ("https://[::ffff:10.0.0.1]/", "address_refused"),
    ],
)
def test_the_rest_is_refused_with_the_reason(url: str, code: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_target(url, PUBLIC)
    assert caught.value.code == code
    assert caught.value.errors[0].pointer == "/url"


def test_an_allowed_network_may_be_reached_by_http() -> None:
    check_target("http://127.0.0.1:8000/", LOCAL)
    check_target("http://localhost:8000/", LOCAL)  # what it resolves to is judged at the connection
    with pytest.raises(Invalid):
        check_target("http://10.0.0.1:8000/", LOCAL)
