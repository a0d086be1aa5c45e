"""The AsyncAPI 3 document of what agents and control plane say to one another, made from the subscribers.

FastStream describes the requests. What it cannot know is added here: the replies, the body of a report
(which the inbox reads itself) and how REPORTS is consumed.
"""

import json
from typing import Any, NoReturn

from faststream.specification import AsyncAPI
from pydantic import BaseModel, SecretStr

from command_api.messaging.broker import Desk, make_broker, subscribe
from command_api.messaging.topology import inbox_config
from command_api.nats_auth.users import ControlUser, Issuer
from schemas.settings import NatsAccount
from schemas.subjects import REPORTS_STREAM
from schemas.work import ClaimReply, HeartbeatReply, HelloReply, PresignReply, RenewReply, Report

TITLE = "Kinora agents"
VERSION = "1.0.0"
REPLIES: dict[str, type[BaseModel]] = {
    "claims": ClaimReply,
    "heartbeats": HeartbeatReply,
    "introductions": HelloReply,
    "presigning": PresignReply,
    "renewals": RenewReply,
}
"""By channel title."""

_NOBODY = NatsAccount(account="A" * 56, signing_seed=SecretStr(""))
"""A broker wants credentials, also where it only describes itself."""

Json = dict[str, Any]


def document(url: str = "nats://localhost:4222") -> Json:
    """The document as JSON values. Titles of channels are fixed, so renaming a handler changes nothing."""
    broker = make_broker(url, ControlUser(Issuer(_NOBODY, 0), "documentation"))
    subscribe(broker, Desk(*[_only_described] * 6))
    specification = AsyncAPI(broker, title=TITLE, version=VERSION, schema_version="3.0.0")
    # Sorted, because FastStream's order of channels differs from run to run.
    described: Json = json.loads(
        json.dumps(json.loads(specification.to_specification().to_json()), sort_keys=True)
    )
    for title, reply in REPLIES.items():
        _add_reply(described, title, reply)
    _describe_reports(described)
    return described


async def _only_described(*_: object) -> NoReturn:
    raise NotImplementedError("this broker only describes itself")


def _add_reply(described: Json, title: str, reply: type[BaseModel]) -> None:
    channel, message = f"{title}.reply", f"{title}:Reply"
    described["components"]["messages"][message] = {"title": message, "payload": _schema(described, reply)}
    described["channels"][channel] = {
        "address": None,
        "description": "The inbox that the request names.",
        "messages": {"Reply": {"$ref": f"#/components/messages/{message}"}},
    }
    described["operations"][title]["reply"] = {
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/Reply"}],
    }


def _describe_reports(described: Json) -> None:
    described["components"]["messages"]["reports:SubscribeMessage"]["payload"] = _schema(described, Report)
    described["components"]["schemas"].pop("EmptyPayload", None)
    consumer = inbox_config()
    described["channels"]["reports"]["x-jetstream"] = {
        "stream": REPORTS_STREAM,
        "durable": consumer.durable_name,
        "ackPolicy": "explicit, after the commit",
        "ackWaitSeconds": consumer.ack_wait,
        "maxDeliver": consumer.max_deliver,
    }


def _schema(described: Json, model: type[BaseModel]) -> Json:
    """Put the model's schema, and those that it refers to, among the components."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas: Json = described["components"]["schemas"]
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema
    return {"$ref": f"#/components/schemas/{model.__name__}"}
