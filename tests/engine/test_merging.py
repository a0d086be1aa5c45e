"""A merged model is an ordinary checkpoint that gives the adapter's own logits, or it is not written."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from qlora_engine.adapters.files import WEIGHTS_FILE
from qlora_engine.adapters.temporal import TemporalMergeRefused
from qlora_engine.models.tiny_random import make_random_model
from qlora_engine.stopping import StopWish
from qlora_engine.training import merging
from qlora_engine.training.attempt import train
from qlora_engine.training.export import FACTS_FILE
from qlora_engine.training.merging import PARITY, MergeRefused, merge
from schemas.training import TrainingSpec
from tests.engine.conftest import MakeSpec, Recorded


def trained(spec: TrainingSpec, no_stop: StopWish) -> Path:
    recorded = Recorded()
    train(spec, recorded, no_stop, torch.device("cpu"))
    return Path(recorded.of("training_done")[0].adapter_folder)


def weight_file_bytes(folder: Path) -> int:
    return sum(tensor.nbytes for file in folder.glob("*.safetensors") for tensor in load_file(file).values())


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
