"""The AsyncAPI 3 document of what third parties receive: the stream, the live feed and webhooks.

Made from the registry of events alone, so it cannot lag behind the code: every released version of every type
is a message, a CloudEvent whose `data` is the JSON Schema of that version.
"""

import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from command_api.feed.frames import BAD_FRAME, FORBIDDEN, STALLED, SUBPROTOCOL, TOO_MUCH, UNAUTHENTICATED
from schemas.envelope import CONTENT_TYPE, split_type
from schemas.events import REGISTRY
from schemas.generate import ENVELOPE_FILE, FOLDER
from schemas.subjects import (
    EPOCH_HEADER,
    EVENTS_STREAM,
    LOG_ID_HEADER,
    POSITION_HEADER,
    PREVIOUS_POSITION_HEADER,
    SUBSCRIBER_API,
    event_subject,
)

Json = dict[str, Any]
_WORDLESS = ("$id", "$schema")
_TEXT = {"type": "string"}
_WHOLE = {"type": "string", "pattern": r"^\d+$"}


@cache
def event_schemas() -> dict[str, Json]:
    """The JSON Schema of every released version, such as ``kinora.job.succeeded.v1``."""
    return {file.name.removesuffix(".json"): _read(file) for file in sorted(FOLDER.glob("*.v*.json"))}


def document(public_url: str, nats_url: str) -> Json:
    """The document as JSON values, for an installation at these addresses."""
    names = list(event_schemas())
    messages = {name: {"$ref": f"#/components/messages/{name}"} for name in names}
    scheme, _, host = public_url.partition("://")
    return {
        "asyncapi": "3.0.0",
        "id": "urn:kinora:events",
        "info": {
            "title": "Kinora events",
            "version": version("kinora"),
            "description": "Everything that happens in an organization, in the order of one log. Each"
            " transport carries the same CloudEvent; `position` is the cursor of all of them.",
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": {
            "nats": {
                "host": nats_url.partition("://")[2] or nats_url,
                "protocol": "nats",
                "description": "With the credentials of a subscription of kind nats.",
            },
            "feed": {
                "host": host,
                "protocol": "wss" if scheme == "https" else "ws",
                "description": "With an access token, or a ticket from POST /api/v1/events/tickets.",
            },
        },
        "channels": {"stream": _stream(messages), "feed": _feed(), "webhooks": _webhooks(messages)},
        "operations": {
            "readStream": _operation("send", "stream", "Kinora publishes every event once, in order."),
            "follow": _operation("send", "feed", "Kinora sends what a client subscribed to."),
            "ask": _operation("receive", "feed", "A client subscribes, and acknowledges."),
            "deliver": _operation("send", "webhooks", "Kinora posts events to the address of a webhook."),
        },
        "components": {
            "messages": {name: _message(name) for name in names} | _frames(),
            "schemas": {"CloudEvent": _cloud_event()} | _payloads(),
        },
    }


def _stream(messages: Json) -> Json:
    return {
        "address": "kinora.v1.{organization}.{workspace}.{aggregate}.{event}",
        "title": EVENTS_STREAM,
        "description": "A JetStream stream. A subscription of kind nats has one durable pull consumer on it,"
        " which gives one event at a time; drop positions that you have seen. It may be filled anew, which"
        f" {EPOCH_HEADER} tells: the consumer goes on behind what was acknowledged.",
        "servers": [{"$ref": "#/servers/nats"}],
        "parameters": {
            "organization": {"description": "org_…"},
            "workspace": {"description": "ws_…, or _ where there is none"},
            "aggregate": {"description": "job, dataset, model, agent, organization, subscription …"},
            "event": {"description": "The rest of the type, without its version."},
        },
        "messages": messages,
        "bindings": {"nats": {"bindingVersion": "0.1.0"}},
        "x-jetstream": {"stream": EVENTS_STREAM, "apiPrefix": SUBSCRIBER_API, "ackPolicy": "explicit"},
    }


def _feed() -> Json:
    closes = {
        BAD_FRAME: "a frame could not be read",
        UNAUTHENTICATED: "no valid token, or it has expired",
        FORBIDDEN: "the token or the page's origin does not allow it",
        STALLED: "the client took nothing for too long",
        TOO_MUCH: "too many connections or requests",
    }
    return {
        "address": "/api/v1/events/ws",
        "title": "Live feed",
        "description": f"WebSocket subprotocol {SUBPROTOCOL}. Closes with "
        + ", ".join(f"{code}: {why}" for code, why in closes.items()),
        "servers": [{"$ref": "#/servers/feed"}],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in _frames()},
        "bindings": {
            "ws": {
                "method": "GET",
                "headers": {
                    "type": "object",
                    "properties": {"Sec-WebSocket-Protocol": {"const": SUBPROTOCOL}},
                },
                "bindingVersion": "0.1.0",
            }
        },
    }


def _webhooks(messages: Json) -> Json:
    return {
        "address": None,
        "title": "Webhooks",
        "description": "POST to the address of a subscription of kind webhook, signed as Standard Webhooks"
        " has it (headers webhook-id, webhook-timestamp, webhook-signature).",
        "messages": messages,
    }


def _operation(action: str, channel: str, summary: str) -> Json:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}


def _message(name: str) -> Json:
    event_type, number = split_type(name)
    schema = event_schemas()[name]
    subject = event_subject(None, None, event_type).replace("._._.", ".{organization}.{workspace}.")
    return {
        "name": name,
        "title": str(schema["title"]),
        "summary": str(schema.get("description", "")).partition("\n")[0],
        "contentType": CONTENT_TYPE,
        "headers": {
            "type": "object",
            "description": "Of the stream.",
            "properties": {
                "Nats-Msg-Id": _TEXT,
                POSITION_HEADER: _WHOLE,
                PREVIOUS_POSITION_HEADER: _WHOLE,
                LOG_ID_HEADER: _TEXT,
                EPOCH_HEADER: _WHOLE,
                "traceparent": _TEXT,
            },
        },
        "payload": {
            "allOf": [
                {"$ref": "#/components/schemas/CloudEvent"},
                {
                    "type": "object",
                    "properties": {
                        "type": {"const": name},
                        "data": {"$ref": f"#/components/schemas/{name}"},
                    },
                },
            ]
        },
        "x-subject": subject,
        "x-newest": number == REGISTRY.version_of(event_type),
        "x-schema": f"/schemas/events/{name}.json",
    }


def _frames() -> Json:
    position = {"type": "integer", "minimum": 0}
    sub = {"type": "string", "minLength": 1, "maxLength": 64}
    fields: dict[str, Json] = {
        "hello": {"head": position, "log_id": _TEXT, "heartbeat_seconds": {"type": "number"}},
        "event": {
            "sub": sub,
            "position": position,
            "event": {"$ref": "#/components/schemas/CloudEvent"},
        },
        "caught_up": {"sub": sub, "position": position},
        "heartbeat": {"head": position, "subscriptions": {"type": "object"}},
        "reset": {"sub": sub, "earliest": position, "log_id": _TEXT, "reason": _TEXT},
        "error": {"sub": {"type": ["string", "null"]}, "code": _TEXT, "message": _TEXT},
        "subscribe": {"sub": sub, "filter": {"type": "object"}, "from": {}, "mode": _TEXT},
        "unsubscribe": {"sub": sub},
        "ack": {"sub": sub, "position": position},
        "ping": {},
        "reauth": {"token": _TEXT},
    }
    return {
        f"frame.{name}": {
            "name": name,
            "title": f"Frame {name}",
            "contentType": "application/json",
            "payload": {
                "type": "object",
                "required": ["type"],
                "properties": {"type": {"const": name}, **properties},
            },
        }
        for name, properties in fields.items()
    }


def _cloud_event() -> Json:
    """The stored envelope, and the two attributes that every transport puts in front of it."""
    stored = _read(FOLDER / ENVELOPE_FILE)
    front = {
        "position": {"type": "integer", "minimum": 1, "description": "Place in the log."},
        "source": {"type": "string", "pattern": "^urn:kinora:log_"},
    }
    return {
        **stored,
        "properties": {**front, **stored["properties"]},
        "required": sorted({*front, *stored["required"]}),
    }


def _payloads() -> Json:
    # Definitions inside a schema are found from the document's root.
    return {
        name: json.loads(json.dumps(schema).replace('"#/$defs/', f'"#/components/schemas/{name}/$defs/'))
        for name, schema in event_schemas().items()
    }


def _read(file: Path) -> Json:
    schema: Json = json.loads(file.read_text(encoding="utf-8"))
    return {key: value for key, value in schema.items() if key not in _WORDLESS}
