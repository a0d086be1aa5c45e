"""A merged model is an ordinary checkpoint that gives the adapter's own logits, or it is not written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from qlora_engine.adapters.files import WEIGHTS_FILE
from qlora_engine.adapters.injection import Injected, inject
from qlora_engine.adapters.temporal import TemporalMergeRefused
from qlora_engine.fingerprints import folder_sha256
from qlora_engine.models import writing
from qlora_engine.models.attention import attend_by_sample
from qlora_engine.models.loading import Loaded, load_model
from qlora_engine.models.quantization import Quantization
from qlora_engine.models.tiny_random import make_random_model
from qlora_engine.models.weights import read_headers
from qlora_engine.models.writing import NoRoom
from qlora_engine.stopping import StopWish
from qlora_engine.training import merging
from qlora_engine.training.attempt import train
from qlora_engine.training.card import FACTS_FILE
from qlora_engine.training.export import Exporter
from qlora_engine.training.forward import Runner
from qlora_engine.training.merged_export import with_merged
from qlora_engine.training.merging import PARITY, MergeRefused, merge, probe_batch
from schemas.training import MERGED_FOLDER, Hyperparameters, TrainingSpec
from tests.engine.conftest import MakeSpec, Recorded


def trained(spec: TrainingSpec, no_stop: StopWish) -> Path:
    recorded = Recorded()
    train(spec, recorded, no_stop, torch.device("cpu"))
    return Path(recorded.of("training_done")[0].adapter_folder)


def weight_file_bytes(folder: Path) -> int:
    return sum(tensor.nbytes for file in folder.glob("*.safetensors") for tensor in load_file(file).values())


def random_adapter(loaded: Loaded, chosen: Hyperparameters, folder: Path) -> Injected:
    """Large updates in every layer, saved into `folder`; the model itself goes on having them."""
    injected = inject(loaded, chosen)
    for name, parameter in injected.trainable():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    folder.mkdir()
    Exporter(loaded, injected, chosen, folder_sha256(loaded.folder)).write(folder, 1)
    return injected


def test_mixed_ranks_merge_into_an_ordinary_checkpoint(
    make_spec: MakeSpec, tiny: Path, no_stop: StopWish, tmp_path: Path
) -> None:
    adapter = trained(
        make_spec(
            max_steps=2, held_out_fraction=0, learning_rate=0.01, rank_pattern={"text": 4, "vision": 12}
        ),
        no_stop,
    )
    output = tmp_path / "merged"
    merged = merge(tiny, adapter, output)
    assert max(merged.difference, merged.stored_difference) <= PARITY
    assert (merged.dtype, merged.size_bytes) == ("float32", weight_file_bytes(output))
    model = AutoModelForImageTextToText.from_pretrained(output)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert "quantization_config" not in json.loads((output / "config.json").read_text("utf-8"))
    assert (output / FACTS_FILE).is_file()
    assert "merged" in (output / "README.md").read_text("utf-8")
    assert {file.name for file in tiny.glob("tokenizer*")} <= {file.name for file in output.iterdir()}


def test_what_differs_is_not_written(
    make_spec: MakeSpec, tiny: Path, no_stop: StopWish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained(make_spec(max_steps=2, held_out_fraction=0, learning_rate=0.01), no_stop)
    monkeypatch.setattr(merging, "PARITY", 0.0)
    with pytest.raises(MergeRefused, match=r"logits differ by .*keep the adapter beside the base"):
        merge(tiny, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    with pytest.raises(MergeRefused, match="give the base that it was trained on"):
        merge(make_random_model(tmp_path / "other", "smolvlm"), adapter, tmp_path / "merged")


def test_a_temporal_part_is_merged_only_while_it_is_zero(
    make_spec: MakeSpec, tiny: Path, no_stop: StopWish, tmp_path: Path
) -> None:
    adapter = trained(make_spec(max_steps=2, held_out_fraction=0, temporal=True), no_stop)
    with pytest.raises(TemporalMergeRefused):
        merge(tiny, adapter, tmp_path / "merged")
    weights = load_file(adapter / WEIGHTS_FILE)
    zeroed = {name: each * 0 if "temporal" in name else each for name, each in weights.items()}
    save_file(zeroed, adapter / WEIGHTS_FILE, metadata={"format": "pt"})
    assert merge(tiny, adapter, tmp_path / "merged").difference <= PARITY


@pytest.mark.parametrize(
    ("architecture", "chosen"),
    [
        ("smolvlm", {"lora_variant": "dora", "quantization": "fp4"}),
        ("qwen2_5_vl", {"double_quantization": False}),
        ("qwen3_vl", {"target_modalities": ("text",), "rslora": True}),
        ("llama", {"init_lora_weights": "olora", "compute_dtype": "float32"}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
)
def test_every_family_is_merged_in_shards_that_anybody_loads(
    architecture: str, chosen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits are those of the model that was trained, not only of one that was put together again."""
    monkeypatch.setattr(writing, "SHARD_BYTES", 1 << 18)
    base = make_random_model(tmp_path / "base", architecture)
    loaded = load_model(str(base), torch.device("cpu"), Quantization.chosen(Hyperparameters(**chosen)))
    tuned = random_adapter(loaded, Hyperparameters(rank=4, **chosen), tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    assert {*read_headers(base)} == {*read_headers(tmp_path / "merged")}
    model, report = type(loaded.model).from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report.values())
    attend_by_sample(model.eval())
    batch = probe_batch(loaded)
    with torch.no_grad():
        one, other = (Runner(each, loaded).logits(batch) for each in (tuned.model, model))
    assert float((one - other).abs().max()) <= PARITY


def test_a_job_merges_what_it_trained_or_says_why_not(
    make_spec: MakeSpec, no_stop: StopWish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"max_steps": 1, "held_out_fraction": 0, "export": "merged"}
    recorded = Recorded()
    train(make_spec(merged_dtype="bfloat16", **few), recorded, no_stop, torch.device("cpu"))
    (done,) = recorded.of("training_done")
    adapter, merged = Path(done.adapter_folder), done.facts.merged
    assert merged.dtype == "bfloat16"
    assert merged.difference <= PARITY < merged.stored_difference
    model = AutoModelForImageTextToText.from_pretrained(adapter / MERGED_FOLDER)
    assert model.dtype == torch.bfloat16
    assert json.loads((adapter / FACTS_FILE).read_text("utf-8"))["facts"] == done.facts.model_dump(
        mode="json"
    )
    counts = [update.done for update in recorded.of("preparing") if update.phase == "merging"]
    assert counts == list(range(counts[-1] + 1))

    monkeypatch.setattr(merging, "PARITY", 0.0)
    recorded = Recorded()
    train(make_spec("again", **few), recorded, no_stop, torch.device("cpu"))
    (done,) = recorded.of("training_done")
    (warned,) = (update for update in recorded.of("logged") if update.code == "not_merged")
    assert "logits differ by" in warned.message
    assert done.facts.merged is None
    assert [path.name for path in Path(done.adapter_folder).iterdir() if path.is_dir()] == []

    recorded = Recorded()
    spec = make_spec("again", **few)
    assert with_merged(done, spec, "", torch.device("cpu"), recorded, StopWish("graceful")) == done
    assert [update.message for update in recorded.of("logged") if "asked to stop" in update.message]

    monkeypatch.setattr(writing, "SPARE_BYTES", 1 << 60)
    with pytest.raises(NoRoom, match=r"merged takes .* GiB, and its disk has .* GiB left"):
        train(make_spec("full", **few), Recorded(), no_stop, torch.device("cpu"))
