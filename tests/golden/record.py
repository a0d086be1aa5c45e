"""``python -m tests.golden.record``: add examples and lives that are missing; nothing recorded is changed."""

import sys

from tests.golden import corpus, lives

if __name__ == "__main__":
    for name in [*corpus.record(), *lives.record()]:
        sys.stdout.write(f"recorded {name}\n")
