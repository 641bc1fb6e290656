"""``python -m rt_mmdf.cli`` is ``rt-mmdf``."""

from rt_mmdf.cli.main import run

if __name__ == "__main__":
    run()
