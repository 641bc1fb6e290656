"""The cortex on the graphics card: a mesh that stays, and one number per vertex that changes."""

from __future__ import annotations

from ctypes import c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from OpenGL import GL
from PySide6.QtGui import QOpenGLContext, QSurfaceFormat

from rt_mmdf.core.blocks import Float32
from rt_mmdf.core.errors import ViewError
from rt_mmdf.sinks.colours import GYRUS, SULCUS
from rt_mmdf.view.camera import Shot
from rt_mmdf.view.colours import N_COLOURS, ColourScale, greyed
from rt_mmdf.view.cortex import Cortex
from rt_mmdf.view.pane import AMBIENT, STALE_PART

DOWNWARDS = np.diag([1.0, -1.0, 1.0, 1.0])
POSITION, NORMAL, SULC, VALUE = range(4)

VERTEX_SHADER = """
IN vec3 position; IN vec3 normal; IN float sulc; IN float value;
uniform mat4 view; uniform mat4 clip; uniform float gain; uniform float diverging;
OUT float light; OUT float depth_of_sulcus; OUT float along;
void main() {
    vec4 seen = view * vec4(position, 1.0);
    vec3 outward = mat3(view[0].xyz, view[1].xyz, view[2].xyz) * normal;
    light = AMBIENT + (1.0 - AMBIENT) * abs(dot(outward, normalize(seen.xyz)));
    depth_of_sulcus = sulc;
    along = diverging > 0.5 ? 0.5 + 0.5 * gain * value : gain * abs(value);
    gl_Position = clip * seen;
}
"""
FRAGMENT_SHADER = """
IN float light; IN float depth_of_sulcus; IN float along;
uniform sampler2D table; uniform float part; uniform vec3 rest;
void main() {
    float grey = mix(GYRUS, SULCUS, clamp(0.5 + 5.0 * depth_of_sulcus, 0.0, 1.0));
    vec4 activity = LOOK_UP(table, vec2((0.5 + (N_COLOURS - 1.0) * clamp(along, 0.0, 1.0)) / N_COLOURS, 0.5));
    COLOUR = vec4(part * light * mix(vec3(grey), activity.rgb, activity.a) + rest, 1.0);
}
"""


@dataclass(frozen=True)
class Dialect:
    """First lines of both shaders for one kind of OpenGL."""

    vertex: str
    fragment: str


_OLD = "#define IN varying\n#define LOOK_UP texture2D\n#define COLOUR gl_FragColor\n"
_NEW = "#define IN in\n#define LOOK_UP texture\nout vec4 COLOUR;\n"
DESKTOP = Dialect("#version 120\n#define IN attribute\n#define OUT varying\n", "#version 120\n" + _OLD)
CORE = Dialect("#version 150\n#define IN in\n#define OUT out\n", "#version 150\n" + _NEW)
EMBEDDED = Dialect(
    "#version 100\nprecision highp float;\n#define IN attribute\n#define OUT varying\n",
    "#version 100\nprecision highp float;\n" + _OLD,
)
CONSTANTS = "".join(
    f"#define {name} {value!r}\n"
    for name, value in {
        "AMBIENT": AMBIENT,
        "GYRUS": GYRUS,
        "SULCUS": SULCUS,
        "N_COLOURS": float(N_COLOURS),
    }.items()
)


class CortexMesh:
    """Static mesh, one float per vertex and frame, colours from a table on the graphics card.

    Light comes from the camera and falls on both sides of the mesh. A frame uploads the values of the vertices and nothing
    else; changing the surface changes which of the uploaded ones is drawn.
    """

    def __init__(self, cortex: Cortex) -> None:
        self._cortex = cortex
        self._surface = cortex.surfaces[0]
        self._values = np.zeros(cortex.n_vertices, dtype=np.float32)
        self._scale: ColourScale | None = None
        self._stale = False
        self._new_values = self._new_table = True
        self._geometry: dict[str, Any] = {}
        self._shots: tuple[Shot, ...] = ()

    def set_surface(self, surface: str) -> None:
        """Draw this surface from now on."""
        self._surface = surface

    def set_values(self, values: Float32 | None) -> None:
        """(n_vertices,); NaN, or None for all: the cortex without colour."""
        self._values = np.zeros(self._cortex.n_vertices, np.float32) if values is None else np.nan_to_num(values, copy=True)
        self._new_values = True

    def set_scale(self, scale: ColourScale) -> None:
        """Colours from now on; call it again when the limits of the scale have changed."""
        self._scale = scale
        self._new_table = True

    def set_stale(self, stale: bool) -> None:
        """Grey and darker, whatever the values are."""
        self._new_table = self._new_table or stale != self._stale
        self._stale = stale

    def set_shots(self, shots: tuple[Shot, ...]) -> None:
        """What `paint` paints."""
        self._shots = shots

    def upload(self, context: QOpenGLContext) -> None:
        """Upload what stays to `context`, which is current and nobody else's; ViewError where it is too old."""
        self._program = compiled(context)
        names = ("view", "clip", "gain", "diverging", "table", "part", "rest")
        self._uniform = {name: GL.glGetUniformLocation(self._program, name) for name in names}
        if _is_core(context):
            GL.glBindVertexArray(GL.glGenVertexArrays(1))
        GL.glUseProgram(self._program)
        GL.glUniform1i(self._uniform["table"], 0)
        GL.glEnable(GL.GL_DEPTH_TEST)
        if self._cortex.is_closed:  # what is inside is never seen, and half of the work
            GL.glEnable(GL.GL_CULL_FACE)
            GL.glFrontFace(GL.GL_CW)  # the picture is drawn from the top down
        self._geometry = {}
        self._sulc = _buffer(GL.GL_ARRAY_BUFFER, self._cortex.sulc, GL.GL_STATIC_DRAW)
        self._value = _buffer(GL.GL_ARRAY_BUFFER, self._values, GL.GL_DYNAMIC_DRAW)
        triangles = _buffer(GL.GL_ELEMENT_ARRAY_BUFFER, self._cortex.triangles.astype(np.uint32), GL.GL_STATIC_DRAW)
        GL.glBindBuffer(GL.GL_ELEMENT_ARRAY_BUFFER, triangles)
        for place in (POSITION, NORMAL, SULC, VALUE):
            GL.glEnableVertexAttribArray(place)
        GL.glActiveTexture(GL.GL_TEXTURE0)
        GL.glBindTexture(GL.GL_TEXTURE_2D, GL.glGenTextures(1))
        self._new_values = self._new_table = True

    def paint(self, ratio: float, background: tuple[float, float, float]) -> None:
        """Paint all shots into the current context, rows from the top down.

        Parameters
        ----------
        ratio : of the device's pixels to those of the shots
        background : red, green, blue of what the context was cleared with, 0 to 1: a stale cortex fades into it
        """
        if self._scale is None:
            return
        if self._new_table:
            table = self._scale.table()
            self._upload_table(greyed(table) if self._stale else table)
        for place, buffer, size in (*self._surface_buffers(), (SULC, self._sulc, 1), (VALUE, self._value, 1)):
            GL.glBindBuffer(GL.GL_ARRAY_BUFFER, buffer)
            GL.glVertexAttribPointer(place, size, GL.GL_FLOAT, False, 0, None)
        if self._new_values:  # their buffer is the one that was bound last
            GL.glBufferSubData(GL.GL_ARRAY_BUFFER, 0, self._values.nbytes, self._values)
            self._new_values = False
        GL.glUniform1f(self._uniform["gain"], 1 / self._scale.high)
        GL.glUniform1f(self._uniform["diverging"], float(self._scale.signed))
        part = STALE_PART if self._stale else 1.0
        GL.glUniform1f(self._uniform["part"], part)
        GL.glUniform3f(self._uniform["rest"], *((1 - part) * own for own in background))
        for shot in self._shots:
            self._draw(shot, ratio)

    def _draw(self, shot: Shot, ratio: float) -> None:
        left, top, width, height = (round(ratio * side) for side in shot.projection.box)
        GL.glViewport(left, top, width, height)
        GL.glUniformMatrix4fv(self._uniform["view"], 1, True, shot.projection.view.astype(np.float32))
        GL.glUniformMatrix4fv(self._uniform["clip"], 1, True, (DOWNWARDS @ shot.projection.clip).astype(np.float32))
        n_left, n_all = self._cortex.n_left_triangles, len(self._cortex.triangles)
        first, last = {0: (0, n_left), 1: (n_left, n_all)}.get(shot.hemisphere, (0, n_all))  # type: ignore[arg-type]
        offset = c_void_p(12 * first)
        GL.glDrawElements(GL.GL_TRIANGLES, 3 * (last - first), GL.GL_UNSIGNED_INT, offset)

    def _surface_buffers(self) -> tuple[tuple[int, Any, int], tuple[int, Any, int]]:
        if self._surface not in self._geometry:
            self._geometry[self._surface] = tuple(
                _buffer(GL.GL_ARRAY_BUFFER, part, GL.GL_STATIC_DRAW)
                for part in (self._cortex.vertices(self._surface), self._cortex.normals(self._surface))
            )
        vertices, normals = self._geometry[self._surface]
        return (POSITION, vertices, 3), (NORMAL, normals, 3)

    def _upload_table(self, table: NDArray[np.uint8]) -> None:
        for name, value in (
            (GL.GL_TEXTURE_MIN_FILTER, GL.GL_NEAREST),
            (GL.GL_TEXTURE_MAG_FILTER, GL.GL_NEAREST),
            (GL.GL_TEXTURE_WRAP_S, GL.GL_CLAMP_TO_EDGE),
            (GL.GL_TEXTURE_WRAP_T, GL.GL_CLAMP_TO_EDGE),
        ):
            GL.glTexParameteri(GL.GL_TEXTURE_2D, name, value)
        GL.glPixelStorei(GL.GL_UNPACK_ALIGNMENT, 1)
        size = (len(table), 1)
        GL.glTexImage2D(GL.GL_TEXTURE_2D, 0, GL.GL_RGBA, *size, 0, GL.GL_RGBA, GL.GL_UNSIGNED_BYTE, table)
        self._new_table = False


def _buffer(target: Any, content: NDArray[Any], usage: Any) -> Any:
    content = np.ascontiguousarray(content)
    buffer = GL.glGenBuffers(1)
    GL.glBindBuffer(target, buffer)
    GL.glBufferData(target, content.nbytes, content, usage)
    GL.glBindBuffer(target, 0)
    return buffer


def _is_core(context: QOpenGLContext) -> bool:
    return context.format().profile() == QSurfaceFormat.OpenGLContextProfile.CoreProfile


def compiled(context: QOpenGLContext) -> Any:
    """The program of both shaders in `context`, which is current; ViewError where it refuses them."""
    dialect = EMBEDDED if context.isOpenGLES() else CORE if _is_core(context) else DESKTOP
    program = GL.glCreateProgram()
    for kind, first, body in (
        (GL.GL_VERTEX_SHADER, dialect.vertex, VERTEX_SHADER),
        (GL.GL_FRAGMENT_SHADER, dialect.fragment, FRAGMENT_SHADER),
    ):
        shader = GL.glCreateShader(kind)
        GL.glShaderSource(shader, first + CONSTANTS + body)
        GL.glCompileShader(shader)
        if not GL.glGetShaderiv(shader, GL.GL_COMPILE_STATUS):
            raise _refused(GL.glGetShaderInfoLog(shader))
        GL.glAttachShader(program, shader)
        GL.glDeleteShader(shader)
    for place, name in enumerate(("position", "normal", "sulc", "value")):
        GL.glBindAttribLocation(program, place, name)
    GL.glLinkProgram(program)
    if not GL.glGetProgramiv(program, GL.GL_LINK_STATUS):
        raise _refused(GL.glGetProgramInfoLog(program))
    return program


def _refused(log: bytes | str) -> ViewError:
    said = log.decode(errors="replace") if isinstance(log, bytes) else log
    version = GL.glGetString(GL.GL_VERSION)
    seen = version.decode(errors="replace") if isinstance(version, bytes) else str(version)
    return ViewError(
        f"OpenGL {seen}: the shader of the cortex was refused ({said.strip()[:300]}); OpenGL 2.1 or newer is expected. "
        "Update the graphics driver."
    )
