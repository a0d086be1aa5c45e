"""The headers that prove who sent a webhook and when: Standard Webhooks, symmetric signatures."""

from collections.abc import Sequence
from datetime import datetime

from standardwebhooks import Webhook

from schemas.envelope import CONTENT_TYPE


def signed_headers(webhook_id: str, body: bytes, secrets: Sequence[str], now: datetime) -> dict[str, str]:
    """Headers of one attempt; `secrets` (``whsec_…``) are all that the receiver may hold, the newest first.

    Every attempt is signed anew, because receivers refuse what is more than minutes old.
    """
    signatures = [Webhook(secret).sign(webhook_id, now, body.decode()) for secret in secrets]
    return {
        "content-type": CONTENT_TYPE,
        "user-agent": "kinora-webhooks",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
