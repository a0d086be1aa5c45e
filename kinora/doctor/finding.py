"""What the doctor says about one thing."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at: how it is, and what to do when it is not well."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def fine(name: str, detail: str) -> Finding:
    return Finding(name, "ok", detail)


def doubtful(name: str, detail: str, remedy: str) -> Finding:
    return Finding(name, "warning", detail, remedy)


def bad(name: str, detail: str, remedy: str) -> Finding:
    return Finding(name, "failed", detail, remedy)
