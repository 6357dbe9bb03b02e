#!/usr/bin/env bash
# Installs Horovod for the torch of a virtual environment, building it where no wheel for that torch and Python is there yet.
#
#   scripts/install_horovod.sh [PYTHON] [WHEELHOUSE]
#
# PYTHON      interpreter of the environment, torch installed in it; default: .venv/bin/python
# WHEELHOUSE  where wheels are kept, a folder for every torch and Python version; default: $PHALANX_WHEELS or ~/.cache/phalanx/wheels
#
# Horovod 0.28.1 is built from its unmodified source distribution, for PyTorch on Gloo (no MPI, TensorFlow, MXNet, NCCL).
# It needs g++ with C++20, make and CMake; CMake is taken from PyPI where the machine has none. On two cores it takes 2 to 5 minutes.
set -euo pipefail

VERSION=0.28.1
PYTHON=${1:-.venv/bin/python}
HOUSE=${2:-${PHALANX_WHEELS:-$HOME/.cache/phalanx/wheels}}

say() { echo "install_horovod: $*" >&2; }
fail() { say "$*"; exit 1; }

command -v "$PYTHON" >/dev/null || fail "there is no interpreter at $PYTHON"
TAG=$("$PYTHON" -c 'import platform, sys, torch
print(f"torch{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}")') ||
	fail "torch cannot be imported by $PYTHON: install it first"
WHEELS=$HOUSE/$TAG

works() { "$PYTHON" -c 'import horovod.torch as hvd; assert hvd.gloo_built()' >/dev/null 2>&1; }
wheel() { find "$WHEELS" -maxdepth 1 -name "horovod-$VERSION-*.whl" 2>/dev/null | head -n 1; }

build() {
	command -v g++ >/dev/null || fail "building needs g++: install a C++ compiler, or put a wheel into $WHEELS"
	command -v make >/dev/null || fail "building needs make: install it, or put a wheel into $WHEELS"
	local work
	work=$(mktemp -d)
	# shellcheck disable=SC2064
	trap "rm -rf '$work'" EXIT
	# Horovod's CMake files set C++14 after all flags that can be given; torch's headers need more. The last -std wins.
	printf '#!/bin/sh\nexec g++ -include stdexcept -include string -include cstdint "$@" -std=c++20 -g0\n' >"$work/cxx20"
	chmod +x "$work/cxx20"
	command -v cmake >/dev/null || "$PYTHON" -m pip install --quiet cmake
	say "building horovod $VERSION for $TAG; the log is $work/log until it ends"
	env PATH="$(dirname "$("$PYTHON" -c 'import sys; print(sys.executable)')"):$PATH" \
		CXX="$work/cxx20" MAKEFLAGS="-j$(nproc)" CMAKE_POLICY_VERSION_MINIMUM=3.5 \
		HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 \
		HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 HOROVOD_CPU_OPERATIONS=GLOO \
		"$PYTHON" -m pip wheel --no-cache-dir --no-deps --no-build-isolation --no-binary horovod \
		"horovod==$VERSION" -w "$work/made" >"$work/log" 2>&1 || {
		tail -n 40 "$work/log" >&2
		fail "the build failed; its last lines are above"
	}
	mkdir -p "$WHEELS"
	local made
	made=$(find "$work/made" -name "horovod-$VERSION-*.whl" | head -n 1)
	cp "$made" "$WHEELS/.$(basename "$made").$$" # whole before it has its name: another build may look for it
	mv "$WHEELS/.$(basename "$made").$$" "$WHEELS/$(basename "$made")"
}

if works; then
	say "horovod works already"
	exit 0
fi
"$PYTHON" -m pip install --quiet setuptools wheel packaging cloudpickle psutil pyyaml cffi
[ -n "$(wheel)" ] || build
"$PYTHON" -m pip install --quiet --no-deps --force-reinstall "$(wheel)"
works || fail "horovod was installed from $(wheel) and cannot be imported; remove that wheel and try again"
say "horovod $VERSION is installed"
