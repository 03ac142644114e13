"""``python -m cloudtrain``: the same as the ``cloudtrain`` command."""

import sys


def main() -> None:
    """The console's entry. Ctrl-C ends it quietly also while its parts are still being imported."""
    try:
        from cloudtrain import cli

        cli.main()
    except KeyboardInterrupt:
        # What a shell shows of a command that was interrupted, as cloudtrain.errors has it.
        sys.exit(130)


if __name__ == "__main__":
    main()
