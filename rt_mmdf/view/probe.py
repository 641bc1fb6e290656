"""Whether a window can be opened here, and what draws in it: ``python -m rt_mmdf.view.probe``.

For `rt-mmdf doctor`, as a process of its own: a graphics driver or a plugin of Qt that fails may end the process that tried.
One line of JSON: ``platform`` (of Qt) and ``renderer``; or ``problem``.
"""

from __future__ import annotations

import json
import sys


def probe() -> dict[str, str]:
    """Open an application on this display and an OpenGL context in it."""
    from rt_mmdf.core.errors import ViewError

    try:
        from PySide6.QtWidgets import QApplication

        from rt_mmdf.view.brain import check_opengl
    except (ImportError, AttributeError, OSError) as error:  # PyOpenGL without libGL: any of them
        return {"problem": f"a library cannot be loaded: {error}"}
    app = QApplication(["rt-mmdf doctor"])
    try:
        return {"platform": app.platformName(), "renderer": check_opengl()}
    except (ViewError, AttributeError, OSError) as error:
        return {"platform": app.platformName(), "problem": str(error)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()) + "\n")
