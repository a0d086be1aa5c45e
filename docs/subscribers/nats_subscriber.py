"""python nats_subscriber.py sub_….json sub_….creds seen.txt prints events, each once, over restarts too."""

import asyncio
import json
from pathlib import Path
from sys import argv

import nats
from cloudevents.core.formats.json import JSONFormat


async def main(at: dict[str, str], credentials: str, seen: Path) -> None:
    nc = await nats.connect(at["url"], user_credentials=credentials, inbox_prefix=at["inbox_prefix"])
    pull = await nc.jetstream(prefix=at["api_prefix"]).pull_subscribe_bind(at["durable"], stream=at["stream"])
    while True:
        try:
            (message,) = await pull.fetch(1, timeout=30)
        except (nats.errors.TimeoutError, nats.js.errors.APIError):
            continue  # nothing new, or the stream is being filled anew
        event = JSONFormat().read(None, message.data)
        if (position := event.get_extension("position")) > int(seen.read_text() if seen.exists() else 0):
            print(position, event.get_type(), event.get_subject(), flush=True)
            seen.write_text(str(position))
        await message.ack()


asyncio.run(main(json.loads(Path(argv[1]).read_text()), argv[2], Path(argv[3])))
