"""The `weightless` program."""

from __future__ import annotations


def main() -> None:
    from weightless.app import app

    app()


if __name__ == "__main__":
    main()
