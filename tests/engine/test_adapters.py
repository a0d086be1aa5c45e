"""Every accepted choice of adapter and quantisation trains, and is the same again once saved and loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit

from benchmarks.engine.purity import make_odd
from qlora_engine.adapters.files import load_adapter, save_adapter
from qlora_engine.adapters.fused import FusedLinear4bit
from qlora_engine.adapters.injection import Injected, inject
from qlora_engine.adapters.parameter_groups import parameter_groups
from qlora_engine.adapters.patterns import resolved
from qlora_engine.data.collate import Batch, Collator
from qlora_engine.device import one_thread
from qlora_engine.errors import ModelRefused
from qlora_engine.models.loading import Loaded, load_model
from qlora_engine.models.quantization import Quantization
from qlora_engine.training.attempt import read_manifest
from qlora_engine.training.forward import Runner
from schemas.adapters import Modality
from schemas.training import Hyperparameters
from tests.engine.conftest import frames_of

CPU = torch.device("cpu")
CHOICES: list[dict[str, Any]] = [
    {},
    {"rslora": True, "dropout": 0.1, "gradient_checkpointing": True},
    {"lora_variant": "dora"},
    {"lora_variant": "dora", "init_lora_weights": "olora", "lora_plus_ratio": 16},
    {"init_lora_weights": "gaussian", "lora_plus_ratio": 16},
    {"init_lora_weights": "olora", "quantization": "fp4"},
    {"rank_pattern": {"vision": 4, "layers.0.*": 2}, "alpha_pattern": {"connector": 32}},
    {"temporal": True, "rank_pattern": {"connector": 2}, "rslora": True, "temporal_kernel": 5},
    {"temporal": True, "init_lora_weights": "olora", "lora_plus_ratio": 16, "compute_dtype": "bfloat16"},
    {"lora_variant": "dora", "quantization": "fp4", "compute_dtype": "bfloat16"},
    {"quantization": "fp4", "double_quantization": False},
    {"double_quantization": False, "target_modalities": ("vision",), "temporal": True},
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def batch(tiny: Path, clips: Path, manifest_file: Path) -> Batch:
    loaded = load_model(str(tiny), CPU)
    frames = frames_of(clips, manifest_file, loaded.vision)
    collator = Collator(loaded.prompts, frames, loaded.context_tokens)
    return collator.batch(read_manifest(manifest_file).examples[:4])


@pytest.mark.parametrize("chosen", CHOICES, ids=lambda chosen: ",".join(chosen) or "default")
def test_it_trains_and_is_the_same_when_loaded_again(
    chosen: dict[str, Any], tiny: Path, batch: Batch, tmp_path: Path
) -> None:
    hyperparameters = Hyperparameters(learning_rate=1e-3, **chosen)
    quantization = Quantization.chosen(hyperparameters)
    loaded = load_model(str(tiny), CPU, quantization)
    injected = inject(loaded, hyperparameters)
    runner = Runner(injected.model, loaded)
    began = {name: parameter.detach().clone() for name, parameter in injected.trainable()}
    optimizer = torch.optim.AdamW(parameter_groups(injected, hyperparameters))
    injected.model.train()
    losses = []
    for _ in range(2):
        loss = runner.loss(batch).total
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    # A and the kernels move from the second step on, because B begins at zero.
    unmoved = [name for name, parameter in injected.trainable() if torch.equal(parameter, began[name])]
    assert unmoved == []

    injected.model.eval()
    save_adapter(injected.model, tmp_path)
    again = load_model(str(tiny), CPU, quantization)
    model = load_adapter(again.model, tmp_path)
    with torch.no_grad():
        assert torch.equal(Runner(model, again).loss(batch).total, runner.loss(batch).total)


def test_adding_in_one_operation_computes_what_peft_does(
    tiny: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(str(tiny), CPU)
    injected = inject(loaded, Hyperparameters(rank=4, alpha=6.0, dropout=0.1))
    layers = [module for module in injected.model.modules() if type(module) is FusedLinear4bit]
    assert len(layers) == len(injected.parts) == 27
    injected.model.train()
    with torch.no_grad():
        for _, parameter in injected.trainable():
            parameter.normal_(std=0.1)  # a B of zeros hides A
    taken: list[str | None] = []
    fusible = FusedLinear4bit._fusible

    def seen(layer: FusedLinear4bit, given: torch.Tensor) -> str | None:
        taken.append(fusible(layer, given))
        return taken[-1]

    monkeypatch.setattr(FusedLinear4bit, "_fusible", seen)
    fused = loss_and_gradient(injected, loaded, batch)
    assert taken == ["default"] * len(layers)
    shown = torch.randn(3, 5, layers[0].in_features)
    with torch.autocast("cpu", torch.bfloat16):  # as on CUDA
        torch.manual_seed(1)
        halved = layers[0](shown)
    assert taken[-1] == "default"
    monkeypatch.setattr(FusedLinear4bit, "_fusible", lambda *_: None)
    stock = loss_and_gradient(injected, loaded, batch)  # the same layers by PEFT's arithmetic
    difference = max(float((ours - theirs).abs().max()) for ours, theirs in zip(fused, stock, strict=True))
    largest = max(float(tensor.abs().max()) for tensor in stock)
    assert difference <= 1e-6 * largest
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        expected = layers[0](shown)
    torch.testing.assert_close(halved, expected, atol=2e-2, rtol=2e-2)


def loss_and_gradient(injected: Injected, loaded: Loaded, batch: Batch) -> list[torch.Tensor]:
    injected.model.zero_grad()
    torch.manual_seed(1)
    loss = Runner(injected.model, loaded).loss(batch).total
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for _, parameter in injected.trainable()]
    return [loss.detach(), *[gradient.clone() for gradient in gradients if gradient is not None]]


def test_the_base_is_quantised_as_chosen(tiny: Path) -> None:
    chosen = Hyperparameters(quantization="fp4", double_quantization=False, compute_dtype="bfloat16")
    loaded = load_model(str(tiny), CPU, Quantization.chosen(chosen))
    layers = [module for module in loaded.model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 27
    assert loaded.dtype == loaded.model.dtype == torch.bfloat16
    for layer in layers:
        state = layer.weight.quant_state
        assert (state.quant_type, state.nested) == ("fp4", False)
        assert layer.compute_dtype == torch.bfloat16


LAYERS: dict[str, Modality] = {
    "model.vision.layers.0.mlp.fc1": "vision",
    "model.vision.layers.10.mlp.fc1": "vision",
    "model.connector.proj": "connector",
    "model.text.layers.0.q_proj": "text",
}


def test_patterns_meet_whole_parts_of_names_and_the_longest_wins() -> None:
    pattern = {"vision": 1, "fc1": 2, "layers.0.*": 3, "layers.0.mlp.fc1": 4}
    assert resolved("rank_pattern", pattern, LAYERS) == {
        "model.vision.layers.0.mlp.fc1": 4,
        "model.vision.layers.10.mlp.fc1": 2,
        "model.text.layers.0.q_proj": 3,
    }
    for missed in ("c1", "0.q_proj_", "layers.1.*"):
        with pytest.raises(ModelRefused, match=f"rank_pattern names '{missed}'") as refused:
            resolved("rank_pattern", {missed: 2}, LAYERS)
        assert refused.value.code == "empty_pattern"


def test_each_kind_of_tensor_has_its_learning_rate(tiny: Path) -> None:
    chosen = Hyperparameters(learning_rate=1e-3, temporal=True, lora_plus_ratio=4)
    injected = inject(load_model(str(tiny), CPU), chosen)
    groups = parameter_groups(injected, chosen)
    assert [(group["lr"], len(group["params"])) for group in groups] == [
        (1e-3, 27), (4e-3, 27), (1e-2, 13),
    ]  # fmt: skip
    plain = inject(load_model(str(tiny), CPU), Hyperparameters())
    (only,) = parameter_groups(plain, Hyperparameters())
    assert [id(parameter) for parameter in only["params"]] == [id(each) for _, each in plain.trainable()]


@pytest.mark.parametrize("chosen", [{"lora_variant": "dora"}, {"init_lora_weights": "olora"}])
def test_widths_that_cannot_be_read_back_on_the_cpu_are_refused(
    chosen: dict[str, Any], tmp_path: Path
) -> None:
    loaded = load_model(str(make_odd(tmp_path, "smolvlm")), CPU)
    ((field, value),) = chosen.items()
    with pytest.raises(
        ModelRefused, match=f"{field} is '{value}', .* multiples of 64 only: leave"
    ) as refused:
        inject(loaded, Hyperparameters(**chosen))
    assert refused.value.code == "uneven_width"
    inject(loaded, Hyperparameters())
