"""What a training was, for whoever gets its adapter: code, data, environment, figures, warnings.

Nothing in it names a person, a file of the owner's or a place on this machine: data are told by their
hashes, and warnings by their codes, since their texts may quote rows.
"""

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard

from qlora_engine.models.loading import Loaded, read_json
from qlora_engine.training.environment import environment, system
from qlora_engine.updates import Logged, Update
from schemas.datasets import Manifest
from schemas.events.job import Evaluation
from schemas.training import TrainingSpec

PACKAGE = "kinora"
MOST_HASHES = 10_000
"""Clips listed one by one; the manifest's hash stands for all of them, however many there are."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass
class Warnings:
    """Counts warnings by code, on their way to whoever listens."""

    emit: Callable[[Update], None]
    counted: Counter[str] = field(default_factory=Counter)

    def heard(self, update: Update) -> None:
        if isinstance(update, Logged) and update.level != "info":
            self.counted[update.code] += 1
        elif update.kind == "oom_recovered":
            self.counted[update.kind] += 1
        self.emit(update)


def code() -> dict[str, str | None]:
    """Which version of ours this is, and of which commit, where that can be known."""
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        return {"kinora": None, "commit": _checked_out()}
    installed = json.loads(package.read_text("direct_url.json") or "{}")
    commit = installed.get("vcs_info", {}).get("commit_id")
    return {"kinora": package.version, "commit": commit or _checked_out()}


def _checked_out() -> str | None:
    """The commit of the checkout that this file is in, marked where files differ from it."""
    root = Path(__file__).parents[2]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    try:
        head, changed = (
            subprocess.run(
                [git, "-C", str(root), *asked], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for asked in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head} with changes" if changed else head


def base_model(base: Loaded, spec: TrainingSpec, sha256: str) -> dict[str, Any]:
    """What is known of it: its name on the hub and its licence, where its own files say them."""
    named = (read_json(base.folder / "config.json") or {}).get("_name_or_path")
    return {
        "id": spec.model_id,
        "sha256": sha256,
        "name": named if isinstance(named, str) and _HUB_ID.fullmatch(named) else None,
        "license": _licence(base.folder),
        "architecture": type(base.model).__name__,
        "parameters": base.parameters,
        "sees_clips": base.vision is not None,
    }


def _licence(folder: Path) -> str | None:
    try:
        named = ModelCard.load(folder / "README.md").data.license
    except (OSError, ValueError):
        return None
    return named if isinstance(named, str) else None


def trained_on(manifest: Manifest, manifest_sha256: str, spec: TrainingSpec, held_out: int) -> dict[str, Any]:
    """What was trained and measured on."""
    hashes = sorted(clip.sha256 for clip in manifest.clips)
    return {
        "id": spec.dataset_id,
        "manifest_sha256": manifest_sha256,
        "examples": len(manifest.examples),
        "held_out_examples": held_out,
        "clips": len(hashes),
        "clip_sha256": hashes if len(hashes) <= MOST_HASHES else None,
    }


@dataclass(frozen=True)
class Record:
    """What does not change while a training goes on."""

    job_id: str
    base_model: Mapping[str, Any]
    data: Mapping[str, Any]
    device: torch.device
    processes: int
    warnings: Warnings

    def described(
        self,
        *,
        series: Path,
        steps: int,
        before: Mapping[str, Any] | None,
        after: Evaluation | None,
    ) -> dict[str, Any]:
        """As JSON, at the end of a training whose steps are in the file `series`."""
        return {
            "job_id": self.job_id,
            "code": code(),
            "base_model": dict(self.base_model),
            "data": dict(self.data),
            "environment": environment(self.device) | system() | {"processes": str(self.processes)},
            "steps": steps,
            "tokens": _tokens(series),
            "evaluation": {
                "before": before,
                "after": None if after is None else after.model_dump(mode="json"),
            },
            "warnings": dict(sorted(self.warnings.counted.items())),
        }


def _tokens(series: Path) -> int:
    """Of all steps taken, in every attempt."""
    return sum(json.loads(line)["tokens"] for line in series.read_text("utf-8").splitlines() if line)
