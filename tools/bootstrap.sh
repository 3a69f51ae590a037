#!/bin/sh
# Puts everything the project needs into the project: uv into .tools, the locked packages into .venv, caches into
# .cache. Touches nothing outside; says in one line what is missing where it cannot.
set -eu
cd "$(dirname "$0")/.."

fail() { echo "setup: $1" >&2; exit 1; }

command -v git >/dev/null || fail "git is missing: install it."
python=""
for candidate in python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$(command -v "$candidate")
        break
    fi
done
[ -n "$python" ] || fail "Python 3.11 or newer is missing: install it."

stamp=.venv/.set-up
if [ -f "$stamp" ] && [ -z "$(find uv.lock pyproject.toml agent/pyproject.toml -newer "$stamp")" ]; then
    exit 0
fi

# pip asks for a Rust compiler's version, and rustup's shim would make itself a home for that.
export PIP_CACHE_DIR="$PWD/.cache/pip" RUSTUP_HOME="$PWD/.cache/rustup"
export UV_CACHE_DIR="$PWD/.cache/uv" UV_PYTHON_DOWNLOADS=never UV_NO_CONFIG=1
# Compiled once here, so that no start of a server or agent has to.
export UV_COMPILE_BYTECODE=1
uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    uv=.tools/bin/uv
    if [ ! -x "$uv" ]; then
        "$python" -m venv .tools || fail "Python's venv is missing: install it (Debian: apt-get install python3-venv)."
        .tools/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.8' ||
            fail "uv could not be installed from the package index: is it reachable?"
    fi
fi
"$uv" sync --quiet --locked --python "$python" || fail "the locked packages could not be installed (see above)."
touch "$stamp"
