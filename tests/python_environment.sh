# Read by the install scripts of the tests: a function that makes a Python environment from a lock.

# The environment $2, from the lock $1, by the Python in $python. --no-deps: the lock names everything, and leaves out what an
# excludes.txt beside it says.
install_python() {
    if command -v uv > /dev/null; then
        "$python" -m venv --without-pip "$2" || return
        uv pip install --quiet --python "$2/bin/python" --no-deps --require-hashes --compile-bytecode -r "$1"
    else
        "$python" -m venv "$2" || return
        "$2/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$1"
    fi
}
