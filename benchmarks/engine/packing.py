"""Packed rows against padded batches: the same logits in every family, hardly any padding, more speed.

Rows are packed by the engine's own plan from samples whose clip and text lengths are log-uniform, 1 to 16.
Padded batches hold as many tokens on average, in random order.
"""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.engine.ours import load, sample_of
from benchmarks.engine.workload import make_model, make_samples
from benchmarks.installation import console, scratch
from benchmarks.report import Result
from qlora_engine.adapters.injection import inject
from qlora_engine.data.collate import IGNORED, Batch, Sample, packed, padded
from qlora_engine.data.frames import ClipFrames
from qlora_engine.data.packing import pack
from qlora_engine.device import one_thread
from qlora_engine.models.families.base import Moments, exchange
from qlora_engine.models.loading import Loaded, load_model
from qlora_engine.models.tiny_random import RECIPES, make_random_model
from qlora_engine.training.forward import Runner
from schemas.training import Hyperparameters

EXACT = 1e-5
MOST_PADDING = 0.03
FASTER = 2.0
BATCH = 16
BUDGET = 4096
PLANNED = 10_000
"""Samples whose packing is judged; only some of them are computed."""


def measure(*, quick: bool = False) -> list[Result]:
    """Run the benchmark: about ten minutes on a quiet machine, or one."""
    results = []
    with scratch() as folder:
        for architecture in RECIPES:
            loaded = load_model(str(make_random_model(folder / architecture, architecture)))
            console.print(f"engine.packing: {architecture}")
            results.append(
                Result(f"max abs logit difference, {architecture}", difference(loaded), "logits", EXACT)
            )
        results.append(Result("padding of planned rows", planned_padding(folder), "share", MOST_PADDING))
        return [*results, *_throughput(folder, quick)]


def difference(loaded: Loaded) -> float:
    """Between the logits of a packed row and those of its samples alone in stock transformers."""
    torch.manual_seed(0)
    samples = [sample(loaded, frames, words) for frames, words in ((4, 1), (2, 30), (2, 9), (6, 3))]
    runner = Runner(loaded.model, loaded)
    with torch.no_grad():
        together = runner.logits(packed(samples))[0]
        loaded.model.set_attn_implementation("sdpa")
        alone = torch.cat([_stock_logits(runner, packed([sample])) for sample in samples])
    return float((together - alone).abs().max())


def contamination(loaded: Loaded) -> float:
    """The same where nothing keeps the samples apart: what a check must be able to see."""
    torch.manual_seed(0)
    samples = [sample(loaded, 2, words) for words in (3, 9)]
    runner = Runner(loaded.model, loaded)
    loaded.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        alone = torch.cat([_stock_logits(runner, packed([sample])) for sample in samples])
        return float((_stock_logits(runner, packed(samples)) - alone).abs().max())


def sample(loaded: Loaded, frames: int, words: int) -> Sample:
    """An answer of so many words to a clip of noise, or to none where the model sees none."""
    clip = _noise(loaded, frames)
    shown = None if clip is None else clip.shown
    encoded = loaded.prompts.encode(exchange("What is shown?", "a red square " * words), shown)
    ids = torch.tensor(encoded.ids)
    labels = ids.masked_fill(~torch.tensor(encoded.supervised), IGNORED)
    return Sample(ids=ids, labels=labels, positions=loaded.prompts.positions(encoded.ids, shown), clip=clip)


def _noise(loaded: Loaded, frames: int) -> ClipFrames | None:
    if loaded.vision is None:
        return None
    layout = loaded.vision.layout(64, 48, frames)
    pixels = torch.randint(0, 256, (frames, 3, layout.height, layout.width), dtype=torch.uint8)
    return ClipFrames(pixels, Moments(tuple(float(frame) for frame in range(frames)), frames), layout)


def _stock_logits(runner: Runner, batch: Batch) -> torch.Tensor:
    found: torch.Tensor = runner.model(
        input_ids=batch.ids,
        attention_mask=torch.ones_like(batch.ids),
        position_ids=batch.position_ids,
        use_cache=False,
        **runner.vision(batch.ids, batch.clips),
    ).logits
    return found[0]


def planned_padding(folder: Path) -> float:
    """The share of the token budget that planned rows leave empty."""
    lengths = [drawn.length for drawn in make_samples(folder, PLANNED)]
    planned = pack(range(PLANNED), lengths, BUDGET)
    return 1 - sum(lengths) / (len(planned) * BUDGET)


def _throughput(folder: Path, quick: bool) -> list[Result]:
    count, layers, rounds = (32, 8, 1) if quick else (64, 30, 2)
    make_model(folder, layers)
    drawn = make_samples(folder, count)
    loaded = load(folder)
    injected = inject(loaded, Hyperparameters())
    injected.model.train()
    runner = Runner(injected.model, loaded)
    samples = [sample_of(each, loaded) for each in drawn]
    budget = BATCH * sum(map(len, samples)) // count
    in_rows = [
        packed([samples[place] for place in row])
        for row in pack(range(count), list(map(len, samples)), budget)
    ]
    side_by_side = [padded(samples[start : start + BATCH], 0) for start in range(0, count, BATCH)]
    ratios = []
    with one_thread():
        for number in range(rounds):
            timed = {}
            for way in ("packed", "padded") if number % 2 else ("padded", "packed"):
                timed[way] = _seconds(runner, in_rows if way == "packed" else side_by_side)
            ratios.append(timed["padded"] / timed["packed"])
            console.print(f"engine.packing: round {number + 1} of {rounds}: {ratios[-1]:.2f} times as fast")
    wasted = 1 - sum(map(len, samples)) / sum(batch.ids.numel() for batch in side_by_side)
    return [
        Result(
            "tokens per second, packed / padded", statistics.median(ratios), "ratio", FASTER, at_least=True
        ),
        Result("padding of padded batches", wasted, "share"),
    ]


def _seconds(runner: Runner, batches: Sequence[Batch]) -> float:
    """CPU time of forward and backward passes: other programs cost none of it."""
    began = time.process_time()
    for batch in batches:
        (runner.loss(batch).total / batch.supervised).backward()  # type: ignore[no-untyped-call]
        runner.model.zero_grad()
    return time.process_time() - began
