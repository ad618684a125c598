"""``alignver``, and ``python -m alignver``: an interrupt while the command is loaded ends it as later ones do."""

import sys


def main() -> None:
    """Load the command line, run it and exit with its code."""
    try:
        from alignver.cli.main import run
    except KeyboardInterrupt:
        print("alignver: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
