# Sourced by the scripts beside it: changes to the checkout's root, and makes `.venv` there once, with everything the
# scripts need. It is made again only when pyproject.toml or scripts/constraints.txt change.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

fits() {
    "$@" -c 'import sys; sys.exit(not (3, 12) <= sys.version_info[:2] < (3, 15))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.14; do
        if fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    if command -v uv >/dev/null 2>&1; then
        uv python find --no-project '>=3.12,<3.15' 2>/dev/null && return
        uv python install 3.13 >&2 && uv python find --no-project 3.13 && return
    fi
    return 1
}

install() {
    local python
    python=$(find_python) || {
        echo "claude-usage-ledger needs Python 3.12 or newer (python3, python3.12 to python3.14, or uv): none was found" >&2
        return 2
    }
    echo "making .venv with $("$python" --version), once; this takes a minute" >&2
    rm -rf .venv
    "$python" -m venv .venv >&2 || {
        rm -rf .venv
        echo "$python cannot make virtual environments; on Debian: apt-get install python3-venv" >&2
        return 2
    }
    PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install -qq \
        --constraint scripts/constraints.txt --editable '.[dev,alerts,fleet,web]' >&2 || {
        rm -rf .venv
        echo "installing the dependencies failed; see the lines above" >&2
        return 2
    }
    wanted >.venv/made-for
}

wanted() {
    cat pyproject.toml scripts/constraints.txt .python-version | cksum
}

is_installed() {
    [ -f .venv/made-for ] && [ "$(cat .venv/made-for)" = "$(wanted)" ] && fits .venv/bin/python
}

if ! is_installed; then
    # Two scripts started at once must not make it twice.
    exec 9>.venv.lock
    if command -v flock >/dev/null 2>&1; then flock 9; fi
    if ! is_installed; then
        install || exit $?
    fi
    exec 9>&-
fi
export PATH="$PWD/.venv/bin:$PATH"
