"""The AsyncAPI document names every conversation, with both sides' messages, and is the same every time."""

import json
from typing import Any

from command_api.messaging.asyncapi import document


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(part) for part in value.values()))
    if isinstance(value, list):
        return set().union(*(references(part) for part in value))
    return set()


def test_every_channel_has_its_title_address_and_reply() -> None:
    described = document()
    assert described["asyncapi"] == "3.0.0"
    addresses = {name: channel["address"] for name, channel in described["channels"].items()}
    assert addresses == {
        "claims": "kinora.claim.{organization}.{agent}",
        "heartbeats": "kinora.heartbeat.{organization}.{agent}",
        "introductions": "kinora.hello.{organization}.{agent}",
        "presigning": "kinora.presign.{organization}.{agent}",
        "renewals": "kinora.renew.{organization}.{agent}",
        "reports": "kinora.report.>",
        "claims.reply": None,
        "heartbeats.reply": None,
        "introductions.reply": None,
        "presigning.reply": None,
        "renewals.reply": None,
    }
    assert described["channels"]["reports"]["x-jetstream"]["durable"] == "inbox"


def test_every_reference_leads_somewhere() -> None:
    described = document()
    for reference in references(described):
        target: Any = described
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]


def test_it_is_the_same_every_time() -> None:
    assert json.dumps(document()) == json.dumps(document())
