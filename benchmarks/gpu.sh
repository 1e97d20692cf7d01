#!/usr/bin/env bash
# Everything that needs a GPU, in nine minutes: the tests marked `cuda`, the searches at full width, the training of
# the suite of suite/roles.yaml.
#
#   bash benchmarks/gpu.sh --prepare [TEXT]      with a network: what a bare machine lacks goes into .gpu/, which git
#                                                ignores; TEXT is a folder for, or with, the corpus of suite/recipe.yaml
#   bash benchmarks/gpu.sh RESULTS [PART …]      on the GPU, without a network: tests, speed, train (all, in this order)
#   bash benchmarks/gpu.sh --dry RESULTS [PART …]   the same at toy shapes on a CPU; COMPILE=always TRAINING=40 rehearses
#                                                torch.compile too, ONLY=EXPRESSION only the tests that pytest -k takes
#
# The machine brings Python ≥ 3.12, torch, transformers and the usual scientific packages.  What else a part needs is
# carried beside the code: tests and speed need the other packages, .gpu/site.tar.xz (31 MiB), train needs the text,
# .gpu/roles (8 MiB).  The code and what is carried for one part take at most 64 MiB together; a run of all parts is
# for a machine that takes both.  Every part writes its results as soon as it has them and ends at its own time limit,
# so that a run that is cut off still counts.  RESULTS gets log.md, and from the training a JSON file and weights: at
# most eight files of 16 MiB.
set -euo pipefail
cd "$(dirname "$0")/.."

TRAVELS_MIB=64  # the code and what one part needs beside it take less
CODE_MIB=32     # of it the code: the packages (31 MiB) must find room beside it
PACKAGES="polars polars-runtime-32 pydantic pydantic-core annotated-types typing-inspection cyclopts docstring-parser
          rich-rst docutils datasets dill multiprocess beartype"
PLATFORMS="manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1"
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || echo python3)}  # `make test` makes .venv

bytes_of() { git ls-files -z --cached --others --exclude-standard -- "$@" | xargs -0 du -cb --apparent-size | tail -1 | cut -f1; }

check_size() {
    local code carried beside of
    code=$(bytes_of .)
    for of in "tests and speed: .gpu/site.tar.xz" "train: .gpu/roles"; do
        carried=${of#*: } beside=0
        [ -e "$carried" ] && beside=$(du -sb "$carried" | cut -f1)
        echo "for ${of%%:*} travel code $((code >> 20)) MiB, $carried $((beside >> 20)) MiB; at most $TRAVELS_MIB MiB together"
        if [ $((code >> 20)) -ge $CODE_MIB ] || [ $(((code + beside) >> 20)) -ge $TRAVELS_MIB ]; then
            echo "too large to travel: the code at most $CODE_MIB MiB, with $carried at most $TRAVELS_MIB MiB" >&2
            exit 1
        fi
    done
}

bring() { # FILE PART …: refuse, before anything runs, parts that need a file which was not carried
    local file=$1 name needing
    shift
    for name in "${PARTS[@]}"; do
        for needing in "$@"; do
            [ "$name" != "$needing" ] || [ -e "$file" ] || { echo "$file is not here, and $name needs it: --prepare" >&2 && exit 2; }
        done
    done
}

prepare() {
    TEXT=$(realpath -m "${1:-runs/roles-text}")
    local site options=() platform
    site=$(mktemp -d)
    for platform in $PLATFORMS; do options+=(--platform "${platform}_x86_64"); done
    # shellcheck disable=SC2086
    "$PYTHON" -m pip install -q --no-deps --no-compile --only-binary=:all: --python-version 3.12 --implementation cp \
        "${options[@]}" -c constraints.txt --target "$site" $PACKAGES
    find "$site" -name '*.so' -exec strip --strip-unneeded {} +
    mkdir -p .gpu/roles
    tar -C "$site" --sort=name --owner=0 --group=0 --mtime=@0 -cf - . | xz --x86 --lzma2=preset=9e >.gpu/site.tar.xz
    rm -rf "$site"
    cd suite
    [ -f "$TEXT/corpus.jsonl.xz" ] || "$PYTHON" corpus.py recipe.yaml "$TEXT"
    "$PYTHON" tokens.py "$TEXT/corpus.jsonl.xz" ../.gpu/roles
    mv ../.gpu/roles/heldout.jsonl.xz "$TEXT"
    cd ..
    check_size
}

part() { # NAME SECONDS COMMAND …: what it prints goes to RESULTS/log.md too; a part that fails stops no other
    local name=$1 seconds=$(($2 * PATIENCE)) began=$SECONDS status=0
    shift 2
    echo "== $name, at most $seconds s: $*"
    timeout --signal=INT --kill-after=10 "$seconds" "$@" 2>&1 || status=$?
    echo "== $name: exit status $status after $((SECONDS - began)) s"
    [ "$status" -eq 0 ] || FAILED+=("$name")
}

run_parts() {
    local name
    for name in "$@"; do
        case $name in
        tests) part tests 110 "$PYTHON" -m pytest -m cuda -p no:cacheprovider -rfEsP --durations=8 "${TESTS[@]}" "${MARKED[@]}" ;;
        speed) part speed 110 "$PYTHON" benchmarks/scale.py gpu "${SPEED[@]}" ;;
        train) part train "$((TRAINING + 20))" "$PYTHON" suite/train.py "${TRAIN[@]}" --pack "$RESULTS" --profile "$SCRATCH/profile.json" ;;
        esac
    done
    [ ${#FAILED[@]} -eq 0 ] || echo "== failed: ${FAILED[*]}"
}

[ "${1:-}" = --prepare ] && { prepare "${2:-}"; exit; }
DRY=false PATIENCE=1
[ "${1:-}" = --dry ] && DRY=true PATIENCE=10 && shift # a rehearsal may run beside other work
RESULTS=${1:?the folder for the results}
shift
PARTS=("${@:-tests}")
[ $# -gt 0 ] || PARTS=(tests speed train)
for name in "${PARTS[@]}"; do
    case $name in tests | speed | train) ;; *) echo "no part $name: wanted tests, speed or train" >&2 && exit 2 ;; esac
done
mkdir -p "$RESULTS"
RESULTS=$(realpath "$RESULTS")
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
export PYTHONPATH="$PWD/src" PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$SCRATCH/inductor}
FAILED=()
mapfile -t MARKED < <(grep -rlE 'mark\.cuda' tests --include='test_*.py')
if $DRY; then
    check_size
    TESTS=(--cuda-stand-in cpu ${ONLY:+-k "$ONLY"}) SPEED=(--toy)
    TRAINING=${TRAINING:-15}
    TRAIN=(suite/roles-dry.yaml "$SCRATCH/tokens.npy" "$SCRATCH/run" "$TRAINING" --compile "${COMPILE:-never}")
    "$PYTHON" -c 'import numpy, sys; numpy.save(sys.argv[1], numpy.random.default_rng(0).integers(1, 300, 40_000).astype("uint16"))' "$SCRATCH/tokens.npy"
else
    bring .gpu/site.tar.xz tests speed
    bring .gpu/roles/tokens.u16.xz train
    mkdir "$SCRATCH/site"
    [ ! -e .gpu/site.tar.xz ] || tar -C "$SCRATCH/site" -xJf .gpu/site.tar.xz
    PYTHONPATH="$SCRATCH/site:$PYTHONPATH"
    TESTS=() SPEED=() TRAINING=${TRAINING:-290}
    TRAIN=(suite/roles.yaml .gpu/roles/tokens.u16.xz "$SCRATCH/run" "$TRAINING")
fi
run_parts "${PARTS[@]}" | tee "$RESULTS/log.md"
grep -q '^== failed' "$RESULTS/log.md" && exit 1 || exit 0
