# shellcheck shell=bash
# Sourced by tools/demo and tools/check: makes or refreshes .venv at the root of the checkout.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV="$ROOT/.venv"
STAMP="$VENV/rt_mmdf_setup"

# Prints the first Python that is new enough and can make virtual environments, or says what was found and what to install.
find_python() {
    local found="" name path version
    for name in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        path=$(command -v "$name") || continue
        # a shim may stand for a Python that is not installed: only running it tells
        version=$("$path" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
        if ! "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            found+="  $path is Python $version, older than 3.11"$'\n'
        elif ! "$path" -c 'import venv, ensurepip' 2>/dev/null; then
            found+="  $path is Python $version, but its venv module is missing"$'\n'
        else
            echo "$path"
            return
        fi
    done
    {
        echo "rt_mmdf needs Python 3.11 or newer with its venv module. Seen here:"
        if [[ -n $found ]]; then printf '%s' "$found"; else echo "  no ${PYTHON:-python3} at all"; fi
        echo "Debian, Ubuntu:  apt-get install python3 python3-venv"
        echo "macOS:           brew install python@3.13"
        echo "A Python in another place: PYTHON=/path/to/python3 bash tools/demo"
    } >&2
    return 1
}

# What the environment depends on.
fingerprint() {
    { echo "$ROOT"; cat "$ROOT/pyproject.toml" "$ROOT/tools/constraints.txt"; } | cksum
}

# set_up [EXTRA]: installs the project with locked versions, and the extra where one is named. Quick when nothing changed.
# A checkout that was moved gets a new environment, since scripts in there name their interpreter by path.
set_up() {
    local extra=${1:-} wanted python
    wanted=$(fingerprint)
    if [[ -f $STAMP && $(head -n 1 "$STAMP") == "$wanted" ]] && grep -qx "extra:$extra" "$STAMP" &&
        "$VENV/bin/python" -c 'import rt_mmdf' 2>/dev/null; then
        return
    fi
    if ! grep -qF "$VENV" "$VENV/bin/activate" 2>/dev/null ||
        ! "$VENV/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$(find_python) || return 1
        echo "Making .venv with $("$python" --version) ..."
        "$python" -m venv --clear "$VENV"
    fi
    echo "Installing rt_mmdf${extra:+ with its [$extra] tools} and locked versions of its libraries into .venv;" \
        "the first time takes some minutes ..."
    rm -f "$STAMP"
    # the build backend first, locked too: building without isolation needs no network when only pyproject.toml changed
    local pip=("$VENV/bin/python" -m pip install -qq --disable-pip-version-check --no-input -c "$ROOT/tools/constraints.txt")
    if ! "${pip[@]}" hatchling || ! "${pip[@]}" --no-build-isolation -e "$ROOT${extra:+[$extra]}"; then
        echo "The installation into .venv did not succeed; the reason is above. It goes on from there at the next start." >&2
        return 1
    fi
    # every extra contains the bare project
    printf '%s\n' "$wanted" extra: "extra:$extra" > "$STAMP"
    echo "Done: $("$VENV/bin/python" -m pip --disable-pip-version-check list 2>/dev/null | tail -n +3 | wc -l) packages."
}
