"""Which files of a local folder make up a dataset or a model, judged before anything is sent."""

from pathlib import Path

from qlora_engine.data.captions import read_captions, too_many_refused
from schemas.errors import FieldError, KinoraError

_MODEL_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja")


class BadSource(KinoraError):
    """The folder is not what was asked for."""

    code = "bad_source"


def dataset_paths(folder: Path) -> list[str]:
    """The captions files and every clip that they name.

    Raises:
        BadSource: when too many rows are wrong or name missing clips, as a validation would find.
        CaptionsError: when a captions file is missing or cannot be read.
    """
    if not folder.is_dir():
        raise BadSource(f"{folder} is not a folder; give the folder that holds the clips and captions.jsonl")
    captions = read_captions(folder)
    if too_many_refused(len(captions.problems), captions.rows):
        errors = [FieldError(pointer=p.where, code=p.code, message=p.message) for p in captions.problems]
        more = f" (the first 20 of {len(errors)})" if len(errors) > 20 else ""
        raise BadSource(f"{folder / captions.file} cannot be used{more}:", errors=tuple(errors[:20]))
    return [*captions.files, *sorted({example.clip for example in captions.examples if example.clip})]


def model_paths(folder: Path) -> list[str]:
    """The files of a Hugging Face checkpoint: configuration, tokenizer and weights; nothing that runs code.

    Raises:
        BadSource: when configuration or safetensors weights are missing.
    """
    if not (folder / "config.json").is_file():
        raise BadSource(f"{folder} has no config.json; give a Hugging Face checkpoint folder")
    paths = [file.name for file in folder.iterdir() if file.is_file() and file.suffix in _MODEL_SUFFIXES]
    if not any(path.endswith(".safetensors") for path in paths):
        pickled = [file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        reason = f" ({pickled[0]} is a pickle and can run code)" if pickled else ""
        raise BadSource(
            f"{folder} has no *.safetensors weights{reason}; save it again with save_pretrained()"
        )
    return sorted(paths)
