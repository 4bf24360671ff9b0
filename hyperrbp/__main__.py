"""The command ``hyperrbp``, and ``python -m hyperrbp``."""

from __future__ import annotations

from hyperrbp.runtime import signals


def main() -> None:
    """Run the command line."""
    signals.exit_at_once()  # the imports below take a moment, in which a signal may come
    from hyperrbp.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
