"""Starts the command line: `kinora …` or `python -m kinora …`."""

from kinora.cli.app import app


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
