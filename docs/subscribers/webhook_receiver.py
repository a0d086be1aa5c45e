"""Takes webhooks: WEBHOOK_SECRET=whsec_… PORT=8000 python webhook_receiver.py (needs standardwebhooks)."""

import os
from wsgiref.simple_server import make_server

from standardwebhooks import Webhook, WebhookVerificationError

webhook, seen = Webhook(os.environ["WEBHOOK_SECRET"]), set()


def receive(request, respond):
    headers = {key[5:].replace("_", "-"): value for key, value in request.items() if key.startswith("HTTP_")}
    try:  # who sent it, that it is unchanged, and that it is recent
        event = webhook.verify(request["wsgi.input"].read(int(request["CONTENT_LENGTH"] or 0)), headers)
    except WebhookVerificationError:
        respond("401 Unauthorized", [])
        return []
    if event["id"] not in seen:  # one may come again: keep the ids in the transaction of what you do
        seen.add(event["id"])
        print(event["type"], event["subject"], event["data"], flush=True)
    respond("204 No Content", [])
    return []


make_server("127.0.0.1", int(os.environ["PORT"]), receive).serve_forever()
