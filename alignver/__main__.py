"""``python -m alignver`` is the same as ``alignver``."""

from alignver.cli.main import run

if __name__ == "__main__":
    run()
