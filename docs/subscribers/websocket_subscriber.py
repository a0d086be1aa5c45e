"""python websocket_subscriber.py URL TOKEN seen.json prints events; the next run goes on where it ended."""

import json
import sys
from pathlib import Path

from websockets.sync.client import connect

url, token, file = sys.argv[1].replace("http", "ws", 1), sys.argv[2], Path(sys.argv[3])
begin = json.loads(file.read_text()) if file.exists() else {"from": "earliest"}
headers = {"Authorization": f"Bearer {token}"}
with connect(
    f"{url}/api/v1/events/ws", subprotocols=["kinora.events.v1"], additional_headers=headers
) as feed:
    log_id = json.loads(feed.recv())["log_id"]
    feed.send(json.dumps({"type": "subscribe", "sub": "all", **begin}))
    for frame in map(json.loads, feed):
        if frame["type"] == "event":
            print(frame["position"], frame["event"]["type"], frame["event"]["subject"], flush=True)
            file.write_text(json.dumps({"from": {"position": frame["position"]}, "log_id": log_id}))
        elif frame["type"] in ("reset", "error"):
            sys.exit(str(frame))
