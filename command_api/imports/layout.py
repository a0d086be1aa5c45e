"""Which of the files that arrived make up a dataset or a model, and where its folder begins among them."""

from collections.abc import Iterable, Mapping

from command_api.imports.errors import SourceFailed
from schemas.datasets import CAPTIONS_NAMES
from schemas.imports import Collection

_CHECKPOINT = ("config.json",)
_CHECKPOINT_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja")
"""Configuration, tokenizer and weights; nothing that runs code."""


def placed(paths: Iterable[str], collection: Collection) -> dict[str, str]:
    """The wanted files by their path in the source: their path in the dataset or model.

    Raises:
        SourceFailed: ``no_captions`` or ``no_checkpoint`` when there is none, or more than one.
    """
    paths = [path for path in paths if not any(part.startswith(".") for part in path.split("/"))]
    root = _root(paths, collection)
    inside = {path: path[len(root) :] for path in paths if path.startswith(root)}
    if collection == "datasets":
        return inside
    wanted = {path: name for path, name in inside.items() if _is_of_checkpoint(name)}
    if not any(name.endswith(".safetensors") for name in wanted.values()):
        raise SourceFailed(
            "the source has no *.safetensors beside config.json; save the model again with save_pretrained()"
            " (pickled weights can run code and are never taken)",
            code="no_checkpoint",
        )
    return wanted


def wanted_of_hub(files: Mapping[str, object], collection: Collection) -> list[str]:
    """What to download at all of a repository."""
    return sorted(placed(files, collection))


def _root(paths: list[str], collection: Collection) -> str:
    markers = CAPTIONS_NAMES if collection == "datasets" else _CHECKPOINT
    folders = sorted(
        {path[: len(path) - len(name)] for path in paths if (name := path.rsplit("/", 1)[-1]) in markers},
        key=lambda folder: (folder.count("/"), folder),
    )
    if not folders:
        raise SourceFailed(
            f"the source has no {' or '.join(markers)}; put it beside the"
            f" {'clips' if collection == 'datasets' else 'weights'}",
            code="no_captions" if collection == "datasets" else "no_checkpoint",
        )
    if len(folders) > 1 and folders[0].count("/") == folders[1].count("/"):
        raise SourceFailed(
            f"the source has {' or '.join(markers)} in more than one folder ({folders[0]} and {folders[1]});"
            " import one of them",
            code="no_captions" if collection == "datasets" else "no_checkpoint",
        )
    return folders[0]


def _is_of_checkpoint(name: str) -> bool:
    return "/" not in name and name.endswith(_CHECKPOINT_SUFFIXES)
