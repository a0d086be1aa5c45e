"""The server: streams with sequences, fences, duplicate windows and atomic batches, and pull consumers.

It answers the subjects that nats-py sends requests to, so the real library runs on top of it.
"""

import base64
import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.simulation.scheduler import NOWHERE, ModelIncomplete, SimulatedLoop
from tests.simulation.virtual import EPOCH

API = "$JS.API."
BATCH_SECONDS = 10.0
"""A batch that nobody goes on with for so long is forgotten."""

Headers = Mapping[str, str]
Json = dict[str, Any]
Answer = Callable[["Reply"], None]


@dataclass(frozen=True)
class Reply:
    """What comes back on a request's inbox; `reply_to` is where a delivered message is acknowledged."""

    data: bytes = b""
    headers: Headers | None = None
    subject: str = ""
    reply_to: str = ""


NO_RESPONDERS = Reply(headers={"Status": "503"})


class Refusal(Exception):
    """An error as the server writes it into its answer."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(description)
        self.error = {"code": code, "err_code": err_code, "description": description}


@dataclass(frozen=True)
class Message:
    sequence: int
    subject: str
    headers: Headers
    data: bytes
    stored_at: float


@dataclass
class Batch:
    """What was sent of an atomic batch; nothing of it is stored before its commit."""

    messages: list[tuple[str, Headers, bytes]]
    touched_at: float


@dataclass
class Consumer:
    """A durable pull consumer with explicit acknowledgement."""

    name: str
    config: Json
    next_sequence: int = 1
    delivered: int = 0
    pending: dict[int, float] = field(default_factory=dict)
    """Stream sequences that were delivered, and when each comes again."""
    deliveries: dict[int, int] = field(default_factory=dict)
    waiting: deque[tuple[float, Answer]] = field(default_factory=deque)
    """Requests for a message, and until when."""


class Stream:
    def __init__(self, config: Json, now: float) -> None:
        self.config = config
        self.created = now
        self.made = 0
        """Which one of its name this is."""
        self.messages: dict[int, Message] = {}
        self.last_sequence = max(0, config.get("first_seq", 0) - 1)
        self.ids: dict[str, tuple[int, float]] = {}
        """Message ids of the duplicate window: sequence and time."""
        self.batches: dict[str, Batch] = {}
        self.consumers: dict[str, Consumer] = {}

    @property
    def name(self) -> str:
        return str(self.config["name"])

    @property
    def window(self) -> float:
        return float(self.config.get("duplicate_window", 0)) / 1e9

    def first_sequence(self) -> int:
        return min(self.messages, default=self.last_sequence + 1)

    def takes(self, subject: str) -> bool:
        return any(matches(pattern, subject) for pattern in self.config["subjects"])


def matches(pattern: str, subject: str) -> bool:
    """NATS wildcards."""
    wanted, given = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(given) > index
        if index >= len(given) or token not in ("*", given[index]):
            return False
    return len(wanted) == len(given)


class Server:
    """The one nats-server of a simulation."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.streams: dict[str, Stream] = {}
        self._streams_made = 0
        self.up = True
        self.on_store: Callable[[str, Message], None] = lambda _stream, _message: None

    def handle(self, subject: str, headers: Headers, data: bytes, answer: Answer | None) -> None:
        """A message from a client, in the order in which its connection carried it."""
        respond = answer or (lambda _reply: None)
        if subject.startswith("$JS.ACK."):
            self._acknowledge(subject, data)
            respond(Reply())
        elif subject.startswith(f"{API}CONSUMER.MSG.NEXT."):
            self._ask_next(subject, data, respond)
        elif subject.startswith(API):
            respond(self._api(subject.removeprefix(API), data))
        else:
            stream = next((one for one in self.streams.values() if one.takes(subject)), None)
            if stream is None:
                respond(NO_RESPONDERS)
                return
            reply = self._publish(stream, subject, headers, data)
            if reply is not None:
                respond(reply)

    # ---- publishing -----------------------------------------------------------------------------

    def _publish(self, stream: Stream, subject: str, headers: Headers, data: bytes) -> Reply | None:
        try:
            if "Nats-Batch-Id" in headers:
                return self._publish_in_batch(stream, subject, headers, data)
            self._check_stream(stream, headers)
            self._check_fence(stream, headers)
            message_id = headers.get("Nats-Msg-Id")
            self._forget_old_ids(stream)
            if message_id is not None and message_id in stream.ids:
                sequence, _ = stream.ids[message_id]
                return _json({"stream": stream.name, "seq": sequence, "duplicate": True})
            return _json({"stream": stream.name, "seq": self._store(stream, subject, headers, data)})
        except Refusal as refusal:
            return _json({"error": refusal.error, "stream": stream.name, "seq": 0})

    def _publish_in_batch(self, stream: Stream, subject: str, headers: Headers, data: bytes) -> Reply | None:
        batch_id, number = headers["Nats-Batch-Id"], int(headers["Nats-Batch-Sequence"])
        now = self.loop.time()
        for old in [name for name, one in stream.batches.items() if now - one.touched_at > BATCH_SECONDS]:
            del stream.batches[old]
        commit = headers.get("Nats-Batch-Commit") == "1"
        if not stream.config.get("allow_atomic"):
            raise Refusal(400, 10174, "atomic publish is disabled")
        if number == 1:
            stream.batches[batch_id] = Batch([], now)
        batch = stream.batches.get(batch_id)
        if batch is None or len(batch.messages) + 1 != number:
            stream.batches.pop(batch_id, None)
            if commit:
                raise Refusal(400, 10176, "atomic publish batch is incomplete")
            return None
        batch.messages.append((subject, headers, data))
        batch.touched_at = now
        if not commit:
            return Reply()
        del stream.batches[batch_id]
        self._check_batch(stream, batch)
        sequence = 0
        for each in batch.messages:
            sequence = self._store(stream, *each)
        return _json(
            {"stream": stream.name, "seq": sequence, "batch": batch_id, "count": len(batch.messages)}
        )

    def _check_batch(self, stream: Stream, batch: Batch) -> None:
        self._forget_old_ids(stream)
        seen: set[str] = set()
        for number, (_, headers, _) in enumerate(batch.messages):
            self._check_stream(stream, headers)
            message_id = headers.get("Nats-Msg-Id")
            if message_id is not None and (message_id in stream.ids or message_id in seen):
                raise Refusal(400, 10201, "atomic publish batch contains duplicate message id")
            seen.add(message_id or "")
            if number == 0:
                self._check_fence(stream, headers)

    def _check_stream(self, stream: Stream, headers: Headers) -> None:
        if headers.get("Nats-Expected-Stream", stream.name) != stream.name:
            raise Refusal(400, 10060, "expected stream does not match")

    def _check_fence(self, stream: Stream, headers: Headers) -> None:
        expected = headers.get("Nats-Expected-Last-Sequence")
        if expected is not None and int(expected) != stream.last_sequence:
            raise Refusal(400, 10071, f"wrong last sequence: {stream.last_sequence}")

    def _store(self, stream: Stream, subject: str, headers: Headers, data: bytes) -> int:
        stream.last_sequence += 1
        sequence, now = stream.last_sequence, self.loop.time()
        message = stream.messages[sequence] = Message(sequence, subject, dict(headers), data, now)
        self.on_store(stream.name, message)
        if "Nats-Msg-Id" in headers and stream.window:
            stream.ids[headers["Nats-Msg-Id"]] = (sequence, now)
        for consumer in stream.consumers.values():
            self._serve(stream, consumer)
        return sequence

    def _forget_old_ids(self, stream: Stream) -> None:
        oldest = self.loop.time() - stream.window
        for name in [name for name, (_, at) in stream.ids.items() if at < oldest]:
            del stream.ids[name]

    # ---- consuming ------------------------------------------------------------------------------

    def _ask_next(self, subject: str, data: bytes, answer: Answer) -> None:
        *_, stream_name, name = subject.split(".")
        stream = self.streams.get(stream_name)
        consumer = stream.consumers.get(name) if stream else None
        if stream is None or consumer is None:
            answer(NO_RESPONDERS)
            return
        expires = json.loads(data).get("expires", 0) / 1e9 if data else 0.0
        turn = (self.loop.time() + expires, answer)
        consumer.waiting.append(turn)
        self._serve(stream, consumer)
        if turn in consumer.waiting:
            self.loop.call_later(expires, self._expire, consumer, turn, context=NOWHERE)

    def _expire(self, consumer: Consumer, turn: tuple[float, Answer]) -> None:
        if turn in consumer.waiting:
            consumer.waiting.remove(turn)
            turn[1](Reply(headers={"Status": "408", "Description": "Request Timeout"}))

    def _serve(self, stream: Stream, consumer: Consumer) -> None:
        now = self.loop.time()
        while consumer.waiting:
            sequence = self._next_for(stream, consumer, now)
            if sequence is None:
                return
            _, answer = consumer.waiting.popleft()
            message = stream.messages[sequence]
            consumer.delivered += 1
            count = consumer.deliveries[sequence] = consumer.deliveries.get(sequence, 0) + 1
            wait = consumer.config["ack_wait"] / 1e9
            self._again_at(stream, consumer, sequence, now + wait)
            stamp = int((EPOCH + message.stored_at) * 1e9)
            acknowledged_at = (
                f"$JS.ACK.{stream.name}.{consumer.name}.{count}.{sequence}.{consumer.delivered}.{stamp}.0"
            )
            answer(Reply(message.data, message.headers, message.subject, acknowledged_at))

    def _next_for(self, stream: Stream, consumer: Consumer, now: float) -> int | None:
        for sequence, due in sorted(consumer.pending.items()):
            if due <= now and sequence in stream.messages:
                return sequence
        if len(consumer.pending) >= consumer.config.get("max_ack_pending", 1000):
            return None
        while consumer.next_sequence <= stream.last_sequence:
            sequence = consumer.next_sequence
            consumer.next_sequence += 1
            if sequence in stream.messages and sequence not in consumer.pending:
                return sequence
        return None

    def _again_at(self, stream: Stream, consumer: Consumer, sequence: int, due: float) -> None:
        consumer.pending[sequence] = due
        self.loop.call_later(
            max(0.0, due - self.loop.time()) + 1e-6, self._serve, stream, consumer, context=NOWHERE
        )

    def _acknowledge(self, subject: str, data: bytes) -> None:
        _, _, stream_name, name, _, sequence_text, *_ = subject.split(".")
        stream = self.streams.get(stream_name)
        consumer = stream.consumers.get(name) if stream else None
        sequence = int(sequence_text)
        if stream is None or consumer is None or sequence not in consumer.pending:
            return
        if data.startswith(b"-NAK"):
            delay = json.loads(data[5:])["delay"] / 1e9 if len(data) > 4 else 0.0
            self._again_at(stream, consumer, sequence, self.loop.time() + delay)
        elif data in (b"", b"+ACK", b"+TERM"):
            del consumer.pending[sequence]
            if stream.config["retention"] == "workqueue":
                stream.messages.pop(sequence, None)
        elif data == b"+WPI":
            wait = consumer.config["ack_wait"] / 1e9
            self._again_at(stream, consumer, sequence, self.loop.time() + wait)
        else:
            raise ModelIncomplete(f"an acknowledgement {data!r}")

    # ---- management -----------------------------------------------------------------------------

    def _api(self, request: str, data: bytes) -> Reply:
        body: Json = json.loads(data) if data else {}
        verb, _, rest = request.rpartition(".")
        try:
            match verb:
                case "STREAM.CREATE" | "STREAM.UPDATE":
                    return _json(self._put_stream(body, new=verb == "STREAM.CREATE"))
                case "STREAM.INFO":
                    return _json(self._stream_info(self._stream(rest)))
                case "STREAM.DELETE":
                    del self.streams[self._stream(rest).name]
                    return _json({"success": True})
                case "STREAM.PURGE":
                    return _json(self._purge(self._stream(rest), body))
                case "STREAM.MSG.GET":
                    return _json({"message": self._message(self._stream(rest), body)})
                case "STREAM":
                    streams = [self._stream_info(one) for one in self.streams.values()]
                    return _json({"total": len(streams), "offset": 0, "limit": 256, "streams": streams})
                case "CONSUMER.LIST":
                    infos = [self._consumer_info(rest, one) for one in self._stream(rest).consumers.values()]
                    after = infos[body.get("offset", 0) :]
                    return _json({"total": len(infos), "offset": 0, "limit": 256, "consumers": after})
            parts = request.split(".")
            match parts[:2]:
                case ["CONSUMER", "CREATE" | "DURABLE"]:
                    return _json(self._put_consumer(self._stream(body["stream_name"]), body["config"]))
                case ["CONSUMER", "INFO"]:
                    stream = self._stream(parts[2])
                    return _json(self._consumer_info(stream.name, self._consumer(stream, parts[3])))
        except Refusal as refusal:
            return _json({"error": refusal.error})
        raise ModelIncomplete(f"the model of JetStream does not know the request $JS.API.{request}")

    def _stream(self, name: str) -> Stream:
        if name not in self.streams:
            raise Refusal(404, 10059, "stream not found")
        return self.streams[name]

    def _consumer(self, stream: Stream, name: str) -> Consumer:
        if name not in stream.consumers:
            raise Refusal(404, 10014, "consumer not found")
        return stream.consumers[name]

    def _put_stream(self, config: Json, *, new: bool) -> Json:
        found = self.streams.get(config["name"])
        if found is None:
            if not new:
                raise Refusal(404, 10059, "stream not found")
            found = self.streams[config["name"]] = Stream(config, self.loop.time())
            self._streams_made += 1
            found.made = self._streams_made
        elif new and found.config != config:
            raise Refusal(400, 10058, "stream name already in use with a different configuration")
        found.config = config
        return self._stream_info(found)

    def _stream_info(self, stream: Stream) -> Json:
        state = {
            "messages": len(stream.messages),
            "bytes": sum(len(one.data) for one in stream.messages.values()),
            "first_seq": stream.first_sequence(),
            "last_seq": stream.last_sequence,
            "consumer_count": len(stream.consumers),
        }
        return {"config": stream.config, "created": _time(stream.created), "state": state}

    def _purge(self, stream: Stream, body: Json) -> Json:
        if stream.config.get("deny_purge"):
            raise Refusal(500, 10110, "stream purge not permitted")
        if body:
            raise ModelIncomplete(f"a purge with {body}")
        purged = len(stream.messages)
        stream.messages.clear()
        return {"success": True, "purged": purged}

    def _message(self, stream: Stream, body: Json) -> Json:
        if "last_by_subj" in body:
            order = sorted(stream.messages.values(), key=lambda one: -one.sequence)
            fits = (one for one in order if matches(body["last_by_subj"], one.subject))
        elif "next_by_subj" in body:
            order = sorted(stream.messages.values(), key=lambda one: one.sequence)
            fits = (
                one
                for one in order
                if one.sequence >= body.get("seq", 0) and matches(body["next_by_subj"], one.subject)
            )
        else:
            fits = iter([stream.messages[body["seq"]]] if body.get("seq") in stream.messages else [])
        found = next(fits, None)
        if found is None:
            raise Refusal(404, 10037, "no message found")
        lines = "".join(f"{name}: {value}\r\n" for name, value in found.headers.items())
        answer: Json = {"subject": found.subject, "seq": found.sequence, "time": _time(found.stored_at)}
        if found.headers:
            answer["hdrs"] = base64.b64encode(f"NATS/1.0\r\n{lines}\r\n".encode()).decode()
        if found.data:
            answer["data"] = base64.b64encode(found.data).decode()
        return answer

    def _put_consumer(self, stream: Stream, config: Json) -> Json:
        name = config.get("durable_name") or config["name"]
        if name not in stream.consumers:
            if config["ack_policy"] != "explicit" or config["deliver_policy"] != "all":
                raise ModelIncomplete(f"a consumer with {config}")
            stream.consumers[name] = Consumer(name, config)
        return self._consumer_info(stream.name, stream.consumers[name])

    def _consumer_info(self, stream_name: str, consumer: Consumer) -> Json:
        return {
            "name": consumer.name,
            "stream_name": stream_name,
            "created": _time(self.loop.time()),
            "config": consumer.config,
            "num_ack_pending": len(consumer.pending),
            "num_pending": 0,
            "num_redelivered": 0,
            "num_waiting": len(consumer.waiting),
        }

    # ---- what may happen to its store -----------------------------------------------------------

    def restart(self) -> None:
        """What was acknowledged is on disk; unfinished batches and waiting requests are not."""
        for stream in self.streams.values():
            stream.batches.clear()
            for consumer in stream.consumers.values():
                consumer.waiting.clear()

    def wipe(self, name: str) -> None:
        """The stream's folder is gone."""
        self.streams.pop(name, None)

    def empty(self, name: str) -> None:
        """Every message is gone, the sequence goes on: nobody may ask for that, but it has happened."""
        if name in self.streams:
            self.streams[name].messages.clear()
            self.streams[name].ids.clear()

    def truncate(self, name: str, keep: int) -> None:
        """The stream is again as it was when its last message was `keep`."""
        stream = self.streams.get(name)
        if stream is not None:
            stream.messages = {number: one for number, one in stream.messages.items() if number <= keep}
            stream.ids = {key: value for key, value in stream.ids.items() if value[0] <= keep}
            stream.last_sequence = min(stream.last_sequence, keep)


def _json(body: Json) -> Reply:
    return Reply(json.dumps(body).encode())


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(EPOCH + seconds, UTC).isoformat().replace("+00:00", "Z")
