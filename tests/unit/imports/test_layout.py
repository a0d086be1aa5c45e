"""Where a dataset or model begins among the files that arrived, and what belongs to it."""

import pytest

from command_api.imports.errors import SourceFailed
from command_api.imports.layout import placed
from schemas.datasets import CAPTIONS_NAMES
from schemas.imports import Collection


@pytest.mark.parametrize("root", ["", "shapes/", "a/b/"])
def test_a_dataset_begins_where_its_captions_are(root: str) -> None:
    paths = [f"{root}captions.jsonl", f"{root}a.mp4", f"{root}more/b.mp4", f"{root}.git/config", "README.md"]
    found = placed(paths, "datasets")
    expected = {"captions.jsonl", "a.mp4", "more/b.mp4"} | ({"README.md"} if not root else set())
    assert set(found.values()) == expected
    assert found[f"{root}a.mp4"] == "a.mp4"


@pytest.mark.parametrize("root", ["", "tiny/"])
def test_a_model_is_its_configuration_tokenizer_and_safetensors(root: str) -> None:
    good = ["config.json", "model.safetensors", "tokenizer.json", "merges.txt", "chat_template.jinja"]
    bad = ["pytorch_model.bin", "modeling_evil.py", "weights.pt", "sub/extra.json"]
    found = placed([f"{root}{name}" for name in good + bad], "models")
    assert sorted(found.values()) == sorted(good)


@pytest.mark.parametrize(
    ("paths", "collection", "code"),
    [
        ([], "datasets", "no_captions"),
        (["a.mp4"], "datasets", "no_captions"),
        (["x/captions.jsonl", "y/captions.csv"], "datasets", "no_captions"),
        (["model.safetensors"], "models", "no_checkpoint"),
        (["config.json", "pytorch_model.bin"], "models", "no_checkpoint"),
    ],
)
def test_sources_without_one(paths: list[str], collection: Collection, code: str) -> None:
    with pytest.raises(SourceFailed) as caught:
        placed(paths, collection)
    assert caught.value.code == code


@pytest.mark.parametrize("name", CAPTIONS_NAMES)
def test_captions_of_every_format_begin_a_dataset(name: str) -> None:
    paths = [f"x/{name}", "x/captions.validation.json", "x/a.mp4", "notes.json"]
    assert set(placed(paths, "datasets").values()) == {name, "captions.validation.json", "a.mp4"}


def test_the_folder_nearest_to_the_top_counts() -> None:
    assert set(placed(["captions.csv", "old/captions.csv"], "datasets").values()) == {
        "captions.csv",
        "old/captions.csv",
    }
