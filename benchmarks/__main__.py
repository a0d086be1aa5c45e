"""`python -m benchmarks NAME [--json]`; without a name, what there is."""

import argparse
import importlib
import sys

from benchmarks.report import show, versions

ENGINE = ("torch", "transformers", "peft", "bitsandbytes")
BENCHMARKS = {
    "append": ("commands and imported events per second, against the stock recorder", ()),
    "api": ("job submissions and reads by 20 concurrent clients", ()),
    "catchup": ("one client replays history, then a hundred slow ones begin to", ()),
    "growth": ("commands and queries at 10,000, 100,000 and 1,000,000 events", ()),
    "latency": ("from a committed command to the frame at a WebSocket client", ()),
    "rebuild": ("the job views folded anew, against the stock runner, under reads", ()),
    "refill": ("a lost stream filled again from the log", ()),
    "engine.arrow": ("the order of frames, by ordinary and by temporal-aware LoRA", ENGINE),
    "engine.control": ("from a step to its update, from a stop to a checkpoint", ENGINE),
    "engine.export": ("a merged model against the base with its adapter", ENGINE),
    "engine.gpu": ("a 7B model on a CUDA GPU: tokens per second, share of its arithmetic, memory", ENGINE),
    "engine.oom": ("memory that does not suffice, and how exact the recovery is", ENGINE),
    "engine.packing": ("packed rows against padded batches: exactness, padding, tokens per second", ENGINE),
    "engine.preflight": ("memory of a training: predicted against held", ENGINE),
    "engine.purity": ("gradients before and after evaluating, generating and saving", ENGINE),
    "engine.ranks": ("allocated against uniform ranks: side found, held-out loss, overhead", ENGINE),
    "engine.recovery": ("trainings killed at random points against an unbroken one", ENGINE),
    "engine.speed": ("time per token and memory against a plain loop and TRL's SFTTrainer", ENGINE),
    "engine.video": ("frames of clips: speed, exactness, memory, waiting", (*ENGINE, "av")),
    "verify": ("offline verification of an export", ()),
    "soak": ("a stream of tiny jobs under random kills", ()),
}

QUICK = (
    "append",
    "catchup",
    "engine.arrow",
    "engine.control",
    "engine.export",
    "engine.gpu",
    "engine.oom",
    "engine.packing",
    "engine.preflight",
    "engine.purity",
    "engine.ranks",
    "engine.recovery",
    "engine.speed",
    "engine.video",
    "growth",
    "latency",
    "rebuild",
    "refill",
    "verify",
)


def main() -> int:
    """0 when every target is met, 1 when one is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, (what, _) in BENCHMARKS.items():
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("--json", action="store_true", help="one JSON object as the last line")
        if name in QUICK:
            command.add_argument("--quick", action="store_true", help="in seconds, roughly")
        if name in ("rebuild", "refill"):
            command.add_argument("--events", type=int, default=None, help="in the log (default 1,000,000)")
        if name == "soak":
            command.add_argument("--minutes", type=float, default=2.0, help="how long (default 2)")
            command.add_argument("--seed", type=int, default=None, help="repeat the same kills")
            command.add_argument(
                "--mutations",
                action="store_true",
                help="instead: put known faults into processes, one after the other, and find each",
            )
    arguments = parser.parse_args()
    options = {key: value for key, value in vars(arguments).items() if key not in ("name", "json")}
    measure = importlib.import_module(f"benchmarks.{arguments.name}").measure
    results = measure(**options)
    show(arguments.name, results, versions(BENCHMARKS[arguments.name][1]), as_json=arguments.json)
    return 1 if any(result.met is False for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
