"""Every key of the window, in one place: what is bound, and what the page under ``?`` shows."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Shortcut:
    """One action: its name in the window, its keys in Qt's words, what it does, and under which heading."""

    action: str
    keys: tuple[str, ...]
    does: str
    group: str


TIME, BRAIN, COLOUR, PANELS, KEEP = "Time", "Brain", "Colour", "Panels", "Keep"

SHORTCUTS = (
    Shortcut("pause", ("Space",), "pause, or play on", TIME),
    Shortcut("back", ("Left",), "one picture back", TIME),
    Shortcut("forward", ("Right",), "one picture forward", TIME),
    Shortcut("second_back", ("Shift+Left",), "one second back", TIME),
    Shortcut("second_forward", ("Shift+Right",), "one second forward", TIME),
    Shortcut("slower", ("Down",), "play slower: 1/2, 1/4, 1/10, full speed", TIME),
    Shortcut("live", ("Home", "L"), "return to live", TIME),
    Shortcut("mark", ("M",), "mark this moment, with a note", TIME),
    Shortcut("camera_left", ("1",), "from the left", BRAIN),
    Shortcut("camera_right", ("2",), "from the right", BRAIN),
    Shortcut("camera_top", ("3",), "from above", BRAIN),
    Shortcut("camera_bottom", ("4",), "from below", BRAIN),
    Shortcut("camera_front", ("5",), "from the front", BRAIN),
    Shortcut("camera_back", ("6",), "from the back", BRAIN),
    Shortcut("camera_reset", ("0",), "reset the camera", BRAIN),
    Shortcut("surface", ("S",), "next surface: inflated, pial, white", BRAIN),
    Shortcut("layout", ("V",), "together, or lateral and medial apart", BRAIN),
    Shortcut("compare", ("X",), "second solver beside the first", BRAIN),
    Shortcut("unpick", ("Esc",), "forget the picked place", BRAIN),
    Shortcut("measure", ("R",), "show RMS, peak or latest of each picture's 40 ms", COLOUR),
    Shortcut("auto", ("A",), "limits: fixed, or slowly adapting", COLOUR),
    Shortcut("calibrate", ("C",), "fix the limits from the last 10 s", COLOUR),
    Shortcut("lower", ("[",), "limits 10 % lower: more is shown", COLOUR),
    Shortcut("higher", ("]",), "limits 10 % higher: less is shown", COLOUR),
    Shortcut("limits", ("Ctrl+L",), "type the limits", COLOUR),
    Shortcut("sources", ("F5",), "time courses of sources", PANELS),
    Shortcut("sensors", ("F6",), "sensor traces", PANELS),
    Shortcut("health", ("F7", "H"), "health of the streams", PANELS),
    Shortcut("average", ("F8", "E"), "event-locked average", PANELS),
    Shortcut("reset_average", ("Shift+E",), "begin the average anew", PANELS),
    Shortcut("theme", ("D",), "dark or light", PANELS),
    Shortcut("full_screen", ("F11",), "full screen", PANELS),
    Shortcut("snapshot", ("P",), "save a picture (PNG)", KEEP),
    Shortcut("film", ("G",), "save a film of the last seconds (MP4)", KEEP),
    Shortcut("help", ("?", "F1"), "this page", KEEP),
    Shortcut("close", ("Ctrl+Q",), "close the window; the engine goes on", KEEP),
)

BY_ACTION = {shortcut.action: shortcut for shortcut in SHORTCUTS}
MOUSE = (("drag", "turn the brain"), ("wheel", "nearer, farther"), ("click", "pick a place on the cortex"))
_SIGNS = {"Left": "←", "Right": "→", "Down": "↓", "Up": "↑"}


def shown(keys: str) -> str:
    """Keys as they are printed on a keyboard."""
    return "+".join(_SIGNS.get(part, part) for part in keys.split("+"))


def keys_of(action: str) -> str:
    """The keys of an action in words, for tooltips."""
    return " or ".join(shown(keys) for keys in BY_ACTION[action].keys)


def help_page() -> str:
    """The table of all keys and of the mouse, as HTML in two columns."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for shortcut in SHORTCUTS:
        groups.setdefault(shortcut.group, []).append((keys_of(shortcut.action), shortcut.does))
    groups["Mouse on the brain"] = list(MOUSE)
    blocks = {
        title: f"<h3>{escape(title)}</h3><table cellspacing='0' cellpadding='2'>"
        + "".join(f"<tr><td width='105'><b>{escape(keys)}</b></td><td>{escape(does)}</td></tr>" for keys, does in rows)
        + "</table>"
        for title, rows in groups.items()
    }
    left = [TIME, COLOUR, KEEP]
    columns = ["".join(blocks[t] for t in left), "".join(html for title, html in blocks.items() if title not in left)]
    cells = "".join(f"<td valign='top' style='padding-right: 28px'>{column}</td>" for column in columns)
    return f"<table><tr>{cells}</tr></table>"
