"""Every way in which a checkpoint can be wrong: refused with a code, the file or field, and a remedy."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

from qlora_engine.models import validation as model_validation
from qlora_engine.models.families import smolvlm
from qlora_engine.models.loading import Loaded, load_model
from qlora_engine.models.tiny import make_tokenizer
from qlora_engine.models.tiny_random import write_preprocessor
from qlora_engine.models.validation import validate_model
from qlora_engine.updates import ModelVerdict
from schemas.training import ModelValidationSpec
from tests.engine.conftest import Recorded

WEIGHTS = "model.safetensors"
TEMPLATE = "chat_template.jinja"
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"


def write_checkpoint(
    folder: Path, *, hidden: int = 64, inner: int = 128, vision: int = 64, vision_inner: int = 128
) -> Path:
    """An untrained checkpoint with one layer in each part and a real tokenizer."""
    tokenizer = make_tokenizer()
    tokens = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = SmolVLMConfig(
        text_config=LlamaConfig(
            vocab_size=(len(tokenizer) + 63) // 64 * 64,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=2048,
            initializer_range=0.1,
            eos_token_id=tokenizer.eos_token_id,
            **tokens,
        ),
        vision_config=SmolVLMVisionConfig(
            hidden_size=vision,
            intermediate_size=vision_inner,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids(smolvlm.IMAGE),
        scale_factor=4,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_preprocessor(folder, "smolvlm")
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("good") / "base")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "base"))


def judged(folder: Path) -> ModelVerdict:
    return validate_model(ModelValidationSpec(model_folder=str(folder)), Recorded())


# ---- ways to spoil a checkpoint ------------------------------------------------------------------------

Spoil = Callable[[Path], object]


def without(*names: str) -> Spoil:
    return lambda folder: [(folder / name).unlink() for name in names]


def containing(name: str, content: str | bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def edited(name: str, part: str | None = None, **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text("utf-8"))
        (content if part is None else content[part]).update(changes)
        (folder / name).write_text(json.dumps(content), "utf-8")

    return spoil


def cut(length: int) -> Spoil:
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:length])


def changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return spoil


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def indexed(index: object) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / SHARD)
        (folder / INDEX).write_text(json.dumps(index), "utf-8")

    return spoil


def naming(*files: str) -> dict[str, object]:
    return {"metadata": {}, "weight_map": {f"tensor {place}": file for place, file in enumerate(files)}}


PROJECTION = "model.connector.modality_projection.proj.weight"
QUERY = "model.text_model.layers.0.self_attn.q_proj.weight"


# ---- the table -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    spoil: Spoil
    code: str
    says: tuple[str, ...]
    """What the message names: where, the value, and what to do."""


CASES: dict[str, Case] = {
    # configuration
    "no config": Case(without("config.json"), "missing_config", ("config.json is missing", "upload")),
    "config is no JSON": Case(containing("config.json", "{"), "bad_config", ("config.json is not JSON",)),
    "config is a list": Case(containing("config.json", "[]"), "bad_config", ("must hold a JSON object",)),
    "config is nested without end": Case(
        containing("config.json", "[" * 100_000), "bad_config", ("config.json is not JSON",)
    ),
    "a field of another type": Case(
        edited("config.json", "text_config", hidden_size="x"),
        "bad_config",
        ("config.json", "hidden_size", "'x'", "upload the config.json"),
    ),
    "a number that cannot be": Case(
        edited("config.json", "text_config", num_attention_heads=0), "bad_config", ("config.json",)
    ),
    "no context": Case(
        edited("config.json", "text_config", max_position_embeddings=0),
        "context_too_small",
        ("context of 0 tokens", "correct max_position_embeddings"),
    ),
    "an unknown family": Case(
        edited("config.json", model_type="bert"),
        "unknown_family",
        ("model_type 'bert'", "use one of: llama, qwen2, qwen2_5_vl, qwen3, qwen3_vl, smolvlm"),
    ),
    "no family": Case(edited("config.json", model_type=None), "unknown_family", ("model_type None",)),
    "remote code": Case(
        edited("config.json", auto_map={"AutoModel": "evil.Model"}),
        "remote_code",
        ("config.json has auto_map", "evil.Model", "without remote code"),
    ),
    "remote code of a part": Case(
        edited("config.json", "text_config", auto_map={"AutoModel": "evil.Model"}),
        "remote_code",
        ("config.json has auto_map",),
    ),
    "remote code of the tokenizer": Case(
        edited("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}),
        "remote_code",
        ("tokenizer_config.json has auto_map",),
    ),
    "quantised already": Case(
        edited("config.json", quantization_config={"bits": 4}),
        "already_quantized",
        ("quantization_config", "use the unquantised weights"),
    ),
    # weights
    "no weights": Case(without(WEIGHTS), "missing_weights", ("no *.safetensors file", "upload the weights")),
    "pickles": Case(pickled, "pickle_weights", ("pytorch_model.bin", "convert them to safetensors")),
    "weights under another name": Case(
        lambda folder: (folder / WEIGHTS).rename(folder / "other.safetensors"),
        "missing_weights",
        (f"neither {WEIGHTS} nor {INDEX}", "save_pretrained"),
    ),
    "empty weights": Case(cut(0), "corrupt_weights", (f"{WEIGHTS} (0 bytes)", "upload it again")),
    "weights cut off in the header": Case(cut(100), "corrupt_weights", (f"{WEIGHTS} (100 bytes)",)),
    "weights cut off by a byte": Case(cut(-1), "corrupt_weights", (WEIGHTS, "cut off or damaged")),
    "weights of noise": Case(containing(WEIGHTS, os.urandom(5000)), "corrupt_weights", ("5000 bytes",)),
    "a header longer than any file": Case(
        containing(WEIGHTS, (2**60).to_bytes(8, "little") + b"{}"), "corrupt_weights", (WEIGHTS,)
    ),
    "a tensor that is missing": Case(
        changed(lambda tensors: tensors.pop(PROJECTION)),
        "missing_weights",
        (f"such as {PROJECTION}", "upload every *.safetensors file"),
    ),
    "weights that are no floats": Case(
        changed(lambda tensors: tensors.update({QUERY: tensors[QUERY].to(torch.int8)})),
        "already_quantized",
        (QUERY, "is I8", "float32"),
    ),
    "weights that are no numbers": Case(
        changed(lambda tensors: tensors[QUERY].fill_(float("nan"))),
        "training_step_failed",
        ("loss nan", "damaged"),
    ),
    # shards
    "an index of nothing": Case(indexed({}), "bad_config", (f"{INDEX} has no weight_map", "upload it again")),
    "an index that is no JSON": Case(containing(INDEX, "{"), "", ()),
    "a shard that is missing": Case(
        indexed(naming(SHARD, "model-00002-of-00002.safetensors")),
        "missing_weights",
        ("names model-00002-of-00002.safetensors", "upload every"),
    ),
    "a shard outside the folder": Case(
        indexed(naming("../base/model.safetensors")),
        "bad_config",
        ("'../base/model.safetensors'", "beside it"),
    ),
    "a shard somewhere on the node": Case(
        indexed(naming("/etc/passwd")), "bad_config", ("'/etc/passwd'", "only name *.safetensors files")
    ),
    # weights against config
    "another width": Case(
        edited("config.json", "text_config", intermediate_size=256),
        "weights_mismatch",
        ("mlp.gate_proj.weight is 128 × 64", "256 × 64 by config.json", "one and the same model"),
    ),
    "another vocabulary": Case(
        edited("config.json", "text_config", vocab_size=64), "weights_mismatch", ("64 × 64 by config.json",)
    ),
    "more layers": Case(
        edited("config.json", "text_config", num_hidden_layers=3),
        "missing_weights",
        ("lack 18 tensors, such as model.text_model.layers.1",),
    ),
    "layers without end": Case(
        edited("config.json", "text_config", num_hidden_layers=10**9),
        "weights_mismatch",
        ("text_config.num_hidden_layers 1000000000", "34 tensors"),
    ),
    "no pixels": Case(
        edited("config.json", "vision_config", image_size=0), "weights_mismatch", ("0 × 64 by config.json",)
    ),
    # tokenizer and pixels
    "no tokenizer": Case(
        without("tokenizer.json", "tokenizer_config.json"), "unusable_tokenizer", ("upload tokenizer.json",)
    ),
    "an empty tokenizer": Case(
        containing("tokenizer.json", "{}"), "unusable_tokenizer", ("the tokenizer does not load",)
    ),
    "tokens that the model does not know": Case(
        lambda folder: [
            changed(
                lambda tensors: tensors.update(
                    {
                        name: tensors[name][:450].clone()
                        for name in ("model.text_model.embed_tokens.weight", "lm_head.weight")
                    }
                )
            )(folder),
            edited("config.json", "text_config", vocab_size=450)(folder),
        ],
        "unusable_tokenizer",
        ("the token id 485, but the model knows 450 tokens", "of the checkpoint"),
    ),
    "a chat template without end": Case(
        # One number too large to be reckoned: no signal and no other thread of the same process gets a turn.
        containing(TEMPLATE, "{{ 9**(9**9) }}"),
        "unusable_chat_template",
        ("more than 3 s", "remove chat_template"),
    ),
    "a chat template that fills the memory": Case(
        containing(TEMPLATE, "{{ 'a' * 10**11 }}"),
        "unusable_chat_template",
        ("1 GiB of memory", "remove chat_template"),
    ),
    "a chat template that fills the prompt": Case(
        containing(TEMPLATE, "{{ 'a' * 2**21 }}"),
        "unusable_chat_template",
        ("one short prompt as more than 1048576 characters", "remove chat_template"),
    ),
    "no processor": Case(
        without("preprocessor_config.json"),
        "missing_processor",
        ("neither video_preprocessor_config.json nor preprocessor_config.json", "upload"),
    ),
    "a processor that is no object": Case(
        containing("preprocessor_config.json", "[]"), "bad_config", ("must hold a JSON object",)
    ),
    "colours that are no numbers": Case(
        containing("preprocessor_config.json", '{"image_mean": "x"}'),
        "bad_config",
        ("image_mean 'x'", "three numbers"),
    ),
    "too few colours": Case(
        containing("preprocessor_config.json", '{"image_mean": [0.5]}'), "bad_config", ("image_mean [0.5]",)
    ),
    "colours without spread": Case(
        containing("preprocessor_config.json", '{"image_std": [0.5, 0, 0.5]}'), "bad_config", ("image_std",)
    ),
}
HARMLESS = {name for name, case in CASES.items() if not case.code}
"""An index beside a whole file is not looked at, as in transformers."""


@pytest.mark.parametrize("name", sorted(set(CASES) - HARMLESS))
def test_a_bad_checkpoint_is_refused_with_its_reason(name: str, folder: Path) -> None:
    case = CASES[name]
    case.spoil(folder)
    verdict = judged(folder)
    assert verdict.facts is None
    (problem,) = verdict.problems
    assert (problem.code, problem.where) == (case.code, "base"), problem.message
    assert [part for part in case.says if part not in problem.message] == [], problem.message
    assert str(folder.parent) not in problem.message  # no place on this node


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_what_does_no_harm_is_taken(name: str, folder: Path) -> None:
    CASES[name].spoil(folder)
    assert judged(folder).problems == ()


WIDTHS = [(60, 1, 34, 65), (80, 992, 48, 4304)]


@pytest.mark.parametrize("widths", WIDTHS)
def test_every_width_can_be_quantised(widths: tuple[int, ...], tmp_path: Path) -> None:
    """Blocks have 64 numbers: they cross rows of other widths, and the last one may be short."""
    hidden, inner, vision, vision_inner = widths
    folder = write_checkpoint(
        tmp_path / "base", hidden=hidden, inner=inner, vision=vision, vision_inner=vision_inner
    )
    assert judged(folder).problems == ()
    loaded = load_model(str(folder), torch.device("cpu"))
    stored = load_file(folder / WEIGHTS)
    for name, layer in loaded.linear_layers():
        weight = stored[f"{name}.weight"]
        block = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
        largest = block.abs().amax(1).repeat_interleave(64)[: weight.numel()].view_as(weight)
        unit = torch.eye(weight.shape[1], requires_grad=True)
        product = layer(unit)
        seen = (product - (0 if layer.bias is None else layer.bias)).T
        # NF4's levels are at most 0.304 of the block's largest number apart.
        assert bool(((seen - weight).abs() <= 0.16 * largest + 1e-6).all()), name
        product.sum().backward()
        assert unit.grad is not None
        assert torch.allclose(unit.grad[0], seen.sum(0), atol=1e-4), name


def test_a_quantisation_that_garbles_is_refused(
    good: Path, monkeypatch: pytest.MonkeyPatch, recorded: Recorded
) -> None:
    def garbling(source: str) -> Loaded:
        loaded = load_model(source, torch.device("cpu"))
        for _, layer in loaded.linear_layers():
            layer.weight.quant_state.state2.absmax *= 3
        return loaded

    monkeypatch.setattr(model_validation, "load_model", garbling)
    (problem,) = judged(good).problems
    assert problem.code == "unfaithful_quantization"
    assert "k_proj, 64 wide, is off by" in problem.message
