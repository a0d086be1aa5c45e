"""The part of `kinora subscriptions` that is about webhooks: what was delivered, once more, a test."""

import time
from typing import Annotated

import typer
from rich.markup import escape

from kinora.cli.datasets import AsJson
from kinora.cli.output import age, connect, door, print_json, print_table, talk
from kinora.client import Client, Json, at

app = typer.Typer(no_args_is_help=True)

TEST_SECONDS = 30.0
SubscriptionArgument = Annotated[str, typer.Argument(metavar="SUBSCRIPTION", help="Its id: sub_…")]


@app.command()
@door
def deliveries(
    subscription: SubscriptionArgument,
    delivery: Annotated[
        str | None, typer.Argument(metavar="[DELIVERY]", help="One alone, with every attempt: dlv_…")
    ] = None,
    status: Annotated[
        str | None, typer.Option(help="pending, delivered or failed; several by comma.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List a webhook's deliveries, newest first, and how its receiver is doing."""
    with connect() as client:
        if delivery is not None:
            print_json(client.get(at("event-subscriptions", subscription, "deliveries", delivery)))
            return
        state = client.get(at("event-subscriptions", subscription, "delivery-state"))
        rows = _newest(client, subscription, status, limit)
    if as_json:
        print_json(rows)
        return
    talk.print(_how_it_is(state), markup=False)
    print_table(
        rows,
        {
            "id": lambda row: row["id"],
            "status": lambda row: row["status"],
            "event": lambda row: row["event_type"].removeprefix("kinora."),
            "position": lambda row: "test" if row["position"] is None else str(row["position"]),
            "attempts": lambda row: str(row["attempt_count"]),
            "last": lambda row: _outcome(row["last_attempt"]),
            "age": lambda row: age(row["created_at"]),
        },
        "Nothing was delivered yet. Try the receiver: kinora subscriptions test SUBSCRIPTION",
    )


@app.command()
@door
def redeliver(
    subscription: SubscriptionArgument,
    delivery: Annotated[
        str | None, typer.Argument(metavar="[DELIVERY]", help="One alone, now: dlv_…")
    ] = None,
    first: Annotated[
        int | None, typer.Option("--from", min=0, help="Position of the first event; 0 for the beginning.")
    ] = None,
    last: Annotated[
        int | None, typer.Option("--until", min=0, help="Position of the last one; by default the newest.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Deliver once more: one delivery, or what the subscription wants of a stretch of the log."""
    if (delivery is None) == (first is None) or (last is not None and first is None):
        raise typer.BadParameter("name either a delivery (dlv_…) or --from POSITION [--until POSITION]")
    with connect() as client:
        if delivery is not None:
            path = at("event-subscriptions", subscription, "deliveries", delivery, "redeliver")
            asked = client.post(path)
        else:
            body = {"from_position": first} | ({} if last is None else {"until_position": last})
            asked = client.post(at("event-subscriptions", subscription, "redeliver"), body)
    if as_json:
        print_json(asked)
    elif delivery is not None:
        talk.print(f"{asked['event_type']} is delivered again now", markup=False)
    else:
        talk.print(
            f"events {asked['from_position']} to {asked['until_position']} are delivered again; receivers"
            f" that keep ids drop what they had. See: kinora subscriptions deliveries {escape(subscription)}",
            markup=False,
        )


@app.command("test")
@door
def try_receiver(subscription: SubscriptionArgument, as_json: AsJson = False) -> None:
    """Send a test event, and wait for what the receiver answers; exit code 6 when it was not taken."""
    with connect() as client:
        asked = client.post(at("event-subscriptions", subscription, "test"))
        path = at("event-subscriptions", subscription, "deliveries", asked["id"])
        deadline = time.monotonic() + TEST_SECONDS
        while (found := client.get(path))["status"] == "pending" and time.monotonic() < deadline:
            time.sleep(0.2)
    if as_json:
        print_json(found)
    elif found["status"] == "pending":
        talk.print("nobody has sent it yet: is the orchestrator running? See `kinora doctor`")
    else:
        talk.print(f"{found['status']}: {_outcome(found['last_attempt'])}", markup=False)
    if found["status"] != "delivered":
        raise typer.Exit(6)


def _newest(client: Client, subscription: str, status: str | None, limit: int) -> list[Json]:
    query = {} if status is None else {"status": status}
    rows = []
    for row in client.pages(at("event-subscriptions", subscription, "deliveries"), **query):
        rows.append(row)
        if len(rows) == limit:
            break
    return rows


def _how_it_is(state: Json) -> str:
    behind = "" if state["position"] is None else f", {state['head'] - state['position']} positions behind"
    failing = "" if state["failing_since"] is None else f", failing for {age(state['failing_since'])}"
    return f"{state['pending']} wait{behind}{failing}"


def _outcome(attempt: Json | None) -> str:
    if attempt is None:
        return "–"
    if attempt["status"] is None:
        return f"{attempt['error']}: {attempt['message']}"
    return f"{attempt['status']} {attempt['answer'] or ''}".strip()[:200]
