"""A byte-level tokenizer for tiny models, trained on the spot on the captions that the sample data use."""

from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from qlora_engine.data import shapes

STILL_PROMPT = "What is in the picture?"
PLACES = (("up left", "up", "up right"), ("left", "middle", "right"), ("down left", "down", "down right"))


def train_tokenizer(special: Sequence[str], **tokens_and_limits: Any) -> Any:
    """Byte-level BPE, which encodes any text; the `special` tokens have the first ids, in this order.

    `tokens_and_limits` go to ``PreTrainedTokenizerFast``: which of them begins, ends and pads.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_lines(), trainer)
    named = set(tokens_and_limits.values())
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=[token for token in special if token not in named],
        **tokens_and_limits,
    )


def _lines() -> Iterator[str]:
    yield "User: You are provided the following series of one two three four five six seven frames from a"
    yield " 0:00:02 [H:MM:SS] video.\n\nFrame from 00:01:\n\n"
    for _ in range(2):  # merges want to be seen twice
        yield f"User: {STILL_PROMPT} {shapes.PROMPT}\nAssistant:"
        yield " Describe the video. What is shown? Which way does it go?"
    for colour in shapes.COLOURS:
        for shape in shapes.SHAPES:
            for row in PLACES:
                yield from (f" a {colour} {shape} sits {place}" for place in row)
            yield from (f" a {colour} {shape} moves {direction}" for direction in shapes.DIRECTIONS)
    for _ in range(2):
        yield " the a an of in on at to from and is are not with it its this that man woman person dog cat"
        yield " ball car hand walks runs turns opens closes picks puts slowly quickly around into out over"
