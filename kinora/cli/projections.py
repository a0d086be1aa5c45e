"""`kinora projections`: list the read models and rebuild one from the log."""

import time

import typer

from kinora.cli.datasets import AsJson
from kinora.cli.output import connect, door, print_json, print_table, talk
from kinora.client import at

app = typer.Typer(no_args_is_help=True, help="Read models: folds of the log.")


@app.command()
@door
def ls(as_json: AsJson = False) -> None:
    """List the read models with their lag."""
    with connect() as client:
        rows = client.get("/projections")["data"]
    if as_json:
        print_json(rows)
        return
    print_table(
        rows,
        {
            "name": lambda row: row["name"],
            "position": lambda row: str(row["position"]),
            "lag": lambda row: str(row["lag"]),
            "parked": lambda row: str(row.get("parked", 0)),
            "rebuild": lambda row: (row.get("rebuild") or {}).get("status", "–"),
        },
        "No read models yet; is the projections process running?",
    )


@app.command()
@door
def rebuild(name: str, wait: bool = True) -> None:
    """Fold a read model anew beside the old one, which serves until the swap."""
    with connect() as client:
        request = client.post(at("projections", name, "rebuild"))
        talk.print(f"rebuild of {name} is {request['status']}")
        if not wait:
            return
        with talk.status(f"rebuilding {name} …") as status:
            while request["status"] not in ("done", "failed"):
                time.sleep(0.2)
                rows = {row["name"]: row for row in client.get("/projections")["data"]}
                request = rows[name].get("rebuild") or {"status": "done"}
                status.update(f"rebuilding {name}: position {request.get('position', 0)}")
    if request["status"] == "failed":
        talk.print(f"rebuild failed: {request.get('error')}", style="red", markup=False)
        raise typer.Exit(1)
    talk.print(f"{name} is rebuilt", style="green")
