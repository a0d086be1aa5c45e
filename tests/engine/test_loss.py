"""The chunked loss is the ordinary one, and in a packed row each sample sees itself alone."""

import pytest
import torch
import torch.nn.functional as functional
from transformers import LlamaConfig, LlamaForCausalLM

from qlora_engine.models.attention import attend_by_sample, packed_mask
from qlora_engine.training.loss import chunked_loss

VOCABULARY = 500


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("bias", [True, False])
def test_chunks_change_neither_loss_nor_gradient(chunk: int, bias: bool) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(32, VOCABULARY, bias=bias).requires_grad_(False)
    hidden = torch.randn(64, 32, requires_grad=True)
    targets = torch.randint(VOCABULARY, (64,))
    reference = functional.cross_entropy(head(hidden), targets, reduction="none")
    (reference.sum() / 64).backward()  # type: ignore[no-untyped-call]
    wanted, hidden.grad = hidden.grad, None
    assert wanted is not None

    loss = chunked_loss(hidden, head, targets, chunk)
    (loss.total / 64).backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert float((hidden.grad - wanted).norm() / wanted.norm()) <= 1e-6
    torch.testing.assert_close(loss.tokens, reference.detach(), rtol=1e-6, atol=1e-6)
    assert torch.equal(loss.right, head(hidden).argmax(dim=1) == targets)
    with torch.no_grad():
        again = chunked_loss(hidden, head, targets, chunk)
    assert torch.equal(again.tokens, loss.tokens)


def test_a_head_that_is_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="freeze it"):
        chunked_loss(torch.randn(2, 4), torch.nn.Linear(4, 9), torch.tensor([1, 2]), 8)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("lengths", [(5, 90, 7, 200, 7), (30,), (1, 1, 2), (64, 64, 64)])
def test_a_packed_row_gives_the_logits_and_gradients_of_its_samples(
    llama: LlamaForCausalLM, lengths: tuple[int, ...]
) -> None:
    llama.set_attn_implementation("sdpa")
    samples = [torch.randint(VOCABULARY, (1, length)) for length in lengths]
    alone = torch.cat([llama(input_ids=ids, use_cache=False).logits for ids in samples], dim=1)
    weight = llama.model.layers[0].self_attn.q_proj.weight
    (wanted,) = torch.autograd.grad(alone.square().sum(), weight)

    attend_by_sample(llama)
    together = llama(
        input_ids=torch.cat(samples, dim=1),
        attention_mask=packed_mask(lengths),
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        use_cache=False,
    ).logits
    (gradient,) = torch.autograd.grad(together.square().sum(), weight)
    assert float((together - alone).detach().abs().max()) <= 1e-5
    assert float((gradient - wanted).abs().max() / wanted.abs().max()) <= 1e-5


def test_without_a_packed_mask_attention_is_as_usual(llama: LlamaForCausalLM) -> None:
    ids = torch.randint(VOCABULARY, (2, 12))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    llama.set_attn_implementation("sdpa")
    usual = llama(input_ids=ids, attention_mask=mask).logits
    answered = llama.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    attend_by_sample(llama)
    assert torch.equal(llama(input_ids=ids, attention_mask=mask).logits[mask.bool()], usual[mask.bool()])
    again = llama.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert torch.equal(again, answered)


def test_lengths_that_do_not_fill_the_row_are_refused(llama: LlamaForCausalLM) -> None:
    attend_by_sample(llama)
    with pytest.raises(ValueError, match="cannot hold queries"):
        llama(
            input_ids=torch.ones((1, 9), dtype=torch.int64),
            attention_mask=packed_mask((4, 4)),
            use_cache=False,
        )
