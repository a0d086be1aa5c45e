"""The adapter is an ordinary PEFT adapter: strangers reproduce its answers; it names no folder of ours."""

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard

from qlora_engine.adapters.injection import Injected
from qlora_engine.data.collate import Collator
from qlora_engine.fingerprints import file_sha256, folder_sha256
from qlora_engine.models.loading import load_model
from qlora_engine.models.tiny_random import make_random_model
from qlora_engine.stopping import StopWish
from qlora_engine.training.attempt import read_manifest, train
from qlora_engine.training.card import ANSWERS_FILE, FACTS_FILE
from qlora_engine.training.forward import Runner
from qlora_engine.training.record import base_model
from schemas.training import Hyperparameters, ResumePoint, TrainingSpec
from tests.engine.conftest import MakeSpec, Recorded, frames_of


def test_a_stranger_gets_the_same_answers(
    make_spec: MakeSpec, tiny: Path, clips: Path, manifest_file: Path, tmp_path: Path, no_stop: StopWish
) -> None:
    recorded = Recorded()
    spec = make_spec(max_steps=25, batch_size=16, held_out_fraction=0)
    train(spec, recorded, no_stop, torch.device("cpu"))
    adapter = Path(recorded.of("training_done")[0].adapter_folder)

    from peft import PeftModel

    loaded = load_model(str(tiny), torch.device("cpu"))
    model = PeftModel.from_pretrained(loaded.model, str(adapter)).eval()
    frames = frames_of(clips, manifest_file, loaded.vision)
    collator = Collator(loaded.prompts, frames, loaded.context_tokens)
    examples = read_manifest(manifest_file).examples[:12]
    with torch.no_grad():
        ours = Runner(Injected(model).model, loaded).answers(collator.questions(examples), 8)

    request = tmp_path / "request.npz"
    pixels = np.stack([frames.of(example.clip).pixels.numpy() for example in examples])
    np.savez(request, frames=pixels, prompts=json.dumps([example.prompt for example in examples]))
    script = Path(__file__).with_name("stock_answers.py")
    ran = subprocess.run(
        [sys.executable, str(script), str(tiny), str(adapter), str(request)],
        capture_output=True,
        check=True,
        cwd=tmp_path,
        text=True,
    )
    theirs = json.loads(ran.stdout.splitlines()[-1])
    assert theirs == ours
    assert all(" moves " in answer for answer in theirs)


def test_the_files_say_what_is_needed_and_nothing_of_this_machine(
    make_spec: MakeSpec, tiny: Path, clips: Path, recorded: Recorded, no_stop: StopWish, tmp_path: Path
) -> None:
    spec = make_spec(max_steps=4).model_copy(update={"dataset_id": "ds_1", "model_id": "mdl_1"})
    train(spec, Recorded(), no_stop, torch.device("cpu"))
    # The record is the whole training's, however many attempts it took.
    resume = ResumePoint(step=3, folder=f"{spec.output_folder}/checkpoint-3")
    train(spec.model_copy(update={"resume": resume}), recorded, no_stop, torch.device("cpu"))
    (done,) = recorded.of("training_done")
    adapter = Path(done.adapter_folder)
    assert sorted(file.name for file in adapter.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", ANSWERS_FILE, FACTS_FILE,
    ]  # fmt: skip
    for name in ("README.md", "adapter_config.json", FACTS_FILE):
        text = (adapter / name).read_text("utf-8")
        for secret in (tmp_path, tiny, clips, Path.home(), platform.node(), "captions.jsonl", ".mp4"):
            assert str(secret) not in text, (name, secret)
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    assert (config["peft_type"], config["r"], config["base_model_name_or_path"]) == ("LORA", 8, None)
    facts = json.loads((adapter / FACTS_FILE).read_text("utf-8"))
    assert facts["facts"] == done.facts.model_dump(mode="json")
    assert facts["facts"]["base_model_sha256"] == facts["run"]["base_model"]["sha256"] == folder_sha256(tiny)
    assert facts["frames"]["count"] == 4
    check_record(facts["run"], spec)
    check_card(adapter / "README.md", facts["run"])


def check_record(run: dict[str, Any], spec: TrainingSpec) -> None:
    manifest = read_manifest(Path(spec.manifest_file))
    assert run["data"]["manifest_sha256"] == file_sha256(Path(spec.manifest_file))
    assert run["data"]["clip_sha256"] == sorted(clip.sha256 for clip in manifest.clips)
    assert run["code"]["kinora"] == version("kinora")
    assert {"torch", "peft", "transformers", "device", "system", "processes"} <= run["environment"].keys()
    series = Path(spec.output_folder, "series.jsonl").read_text("utf-8").splitlines()
    assert (run["steps"], len(series)) == (4, 4)
    assert run["tokens"] == sum(json.loads(line)["tokens"] for line in series) > 0
    assert run["evaluation"]["before"]["loss"] > run["evaluation"]["after"]["loss"] > 0


def check_card(file: Path, run: dict[str, Any]) -> None:
    """As the Hub reads it, and as people do."""
    card = ModelCard.load(file)
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "video-text-to-text")
    assert {"lora", "qlora"} <= set(card.data.tags)
    assert card.data.datasets == ["ds_1"]
    before, after = (run["evaluation"][when]["loss"] for when in ("before", "after"))
    for told in (
        "PeftModel.from_pretrained(base, ADAPTER_FOLDER)",
        "| base model | mdl_1 |",
        f"| steps, tokens | 4, {run['tokens']:,} |",
        f"| loss | {before:.4f} | {after:.4f} |",
    ):
        assert told in card.text


def test_a_base_that_says_its_name_and_licence_is_named(tmp_path: Path) -> None:
    base = make_random_model(tmp_path / "base", "llama")
    config = json.loads((base / "config.json").read_text("utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"_name_or_path": "example/base-1.0"}), "utf-8")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n", "utf-8")
    loaded = load_model(str(base), torch.device("cpu"))
    spec = TrainingSpec(
        job_id=f"job_{'0' * 32}", attempt=1, hyperparameters=Hyperparameters(), model_folder=str(base),
        dataset_folder="", manifest_file="", output_folder="",
    )  # fmt: skip
    named = base_model(loaded, spec, "0" * 64)
    assert (named["name"], named["license"], named["sees_clips"]) == ("example/base-1.0", "apache-2.0", False)
    (base / "config.json").write_text(json.dumps(config | {"_name_or_path": str(base)}), "utf-8")
    assert base_model(loaded, spec, "0" * 64)["name"] is None
