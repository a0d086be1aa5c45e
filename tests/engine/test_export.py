"""The adapter is an ordinary PEFT adapter: strangers reproduce its answers; it names no folder of ours."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from qlora_engine.adapters.injection import Injected
from qlora_engine.data.collate import Collator
from qlora_engine.fingerprints import folder_sha256
from qlora_engine.models.loading import load_model
from qlora_engine.stopping import StopWish
from qlora_engine.training.attempt import read_manifest, train
from qlora_engine.training.export import ANSWERS_FILE, FACTS_FILE
from qlora_engine.training.forward import Runner
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
    make_spec: MakeSpec, tiny: Path, recorded: Recorded, no_stop: StopWish, tmp_path: Path
) -> None:
    train(make_spec(max_steps=2), recorded, no_stop, torch.device("cpu"))
    (done,) = recorded.of("training_done")
    adapter = Path(done.adapter_folder)
    assert sorted(file.name for file in adapter.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", ANSWERS_FILE, FACTS_FILE,
    ]  # fmt: skip
    for name in ("README.md", "adapter_config.json", FACTS_FILE):
        text = (adapter / name).read_text("utf-8")
        assert str(tmp_path) not in text
        assert str(tiny) not in text
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    assert (config["peft_type"], config["r"], config["base_model_name_or_path"]) == ("LORA", 8, None)
    facts = json.loads((adapter / FACTS_FILE).read_text("utf-8"))
    assert facts["facts"] == done.facts.model_dump(mode="json")
    assert facts["facts"]["base_model_sha256"] == folder_sha256(tiny)
    assert facts["frames"]["count"] == 4
