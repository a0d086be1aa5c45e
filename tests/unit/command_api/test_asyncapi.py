"""The AsyncAPI document of events: whole, sound inside, and the same every time."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

from command_api.subscriptions.asyncapi import document, event_schemas
from schemas.envelope import public_event, versioned_type
from schemas.events import REGISTRY
from tests.golden import corpus

URLS = "https://kinora.example.org", "nats://nats.example.org:4222"
DOCUMENT = document(*URLS)


def references(value: Any) -> Iterator[str]:
    match value:
        case {"$ref": str(reference)}:
            yield reference
        case dict():
            for each in value.values():
                yield from references(each)
        case list():
            for each in value:
                yield from references(each)


def test_every_released_version_is_a_message() -> None:
    names = {versioned_type(event) for event in REGISTRY.types}
    assert names <= event_schemas().keys()
    for channel in ("stream", "webhooks"):
        assert DOCUMENT["channels"][channel]["messages"].keys() == event_schemas().keys()
    assert event_schemas().keys() <= DOCUMENT["components"]["messages"].keys()


def test_every_reference_leads_somewhere() -> None:
    found = list(references(DOCUMENT))
    assert len(found) > 100
    for reference in found:
        at: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]


def test_the_messages_describe_what_is_sent() -> None:
    """A recorded event of every version fits its message, and no other one's."""
    names = list(event_schemas())
    for name, other in zip(names, [*names[1:], names[0]], strict=True):
        sent = public_event(7, "log_0", corpus.recorded()[name][0])
        assert validator(name).is_valid(sent), list(validator(name).iter_errors(sent))
        assert not validator(other).is_valid(sent)
        del sent["position"]
        assert not validator(name).is_valid(sent)


def validator(name: str) -> Draft202012Validator:
    payload = DOCUMENT["components"]["messages"][name]["payload"]
    return Draft202012Validator(payload | {"components": DOCUMENT["components"]})


def test_another_process_makes_the_same() -> None:
    make = (
        "import json; from command_api.subscriptions.asyncapi import document;"
        f" print(json.dumps(document(*{URLS!r})))"
    )
    made = subprocess.run([sys.executable, "-c", make], check=True, capture_output=True, text=True)
    assert made.stdout.strip() == json.dumps(DOCUMENT)
