"""What the package sets of the process, how idle threads wait first: asked of OpenMP, which prints its settings."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

import universal_neurons as un
from universal_neurons.errors import ConfigError
from universal_neurons.torch_state import settled_torch

# The library of OpenMP that torch brings, loaded alone: it settles and prints the same, a second sooner.
OPENMP = (
    f"import ctypes; ctypes.CDLL({str(next(Path(torch.__file__).parent.glob('lib/libgomp*.so*'), 'libgomp.so.1'))!r})"
)
OURS = (
    "OMP_WAIT_POLICY",
    "THP_MEM_ALLOC_ENABLE",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
)  # variables that the package sets where nobody has
SLEEP = 0  # turns of a loop that an idle thread makes before it sleeps


def turns_of_idle_threads(code: str, **environment: str) -> int:
    """What GNU OpenMP, which torch's Linux builds bring, says of itself in a new interpreter."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"OMP_DISPLAY_ENV": "VERBOSE"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = (line for line in run.stderr.splitlines() if "GOMP_SPINCOUNT" in line)
    return int(line.split()[-1].strip("'"))


@pytest.mark.parametrize("module", ["universal_neurons", "universal_neurons.cli.commands"])
def test_idle_threads_sleep_at_once_in_the_library_and_the_command(module):
    assert turns_of_idle_threads(f"import {module}, torch") == SLEEP


@pytest.mark.parametrize("choice", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "77"}])
def test_the_users_choice_is_kept(choice):
    chosen = turns_of_idle_threads(OPENMP, **choice)
    assert chosen > SLEEP
    assert turns_of_idle_threads(f"import universal_neurons; {OPENMP}", **choice) == chosen


def test_where_torch_was_there_first_its_own_policy_holds():
    assert turns_of_idle_threads("import torch, universal_neurons") == turns_of_idle_threads("import torch") > SLEEP


@pytest.mark.parametrize(
    ("given", "inherited"), [({}, ["PASSIVE", "1", "128"]), (dict.fromkeys(OURS, "0"), ["0", "0", "0"])]
)
def test_processes_started_from_here_inherit_it(given, inherited):
    code = f"import os, universal_neurons; print(*(os.environ[name] for name in {OURS}))"
    environment = {key: value for key, value in os.environ.items() if key not in OURS} | given
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == inherited


def fail_within(number: int | None, seen: list[int]) -> None:
    """Fail while so many threads are used, and say how many were."""
    with settled_torch(number):
        seen.append(torch.get_num_threads())
        raise ZeroDivisionError


@pytest.mark.parametrize(("number", "within"), [(3, 3), (None, 2)])
def test_threads_are_put_back_also_where_something_fails(number, within):
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            fail_within(number, seen)
        assert (seen, torch.get_num_threads()) == ([within], 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "setting",
    [
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),
        lambda: float64_by_default(),
        lambda: rounded_products(),
    ],
    ids=["autocast", "another device", "float64", "rounded products"],
)
def test_a_callers_defaults_change_nothing(setting, folders, text_file, tmp_path):
    """The same study under other settings of the process gives the same bytes, and leaves the settings alone."""

    def study(out):
        config = un.StudyConfig(
            models=(str(folders[0]),), data=str(text_file), out=str(tmp_path / out), max_tokens=2000, context=32,
            labels=("tokens",), stages=("weights", "statistics", "labels"),
        )  # fmt: skip
        return un.run_study(config, progress=False).manifest["tables"]

    plain = study("plain")
    with setting():
        before = settings_now()
        assert study("other") == plain
        assert settings_now() == before


@contextlib.contextmanager
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def rounded_products():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def settings_now():
    products = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    return torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu"), products


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_are_of_float32_and_afterwards_as_before(precision):
    torch.set_float32_matmul_precision(precision)
    try:
        before = settings_now()
        values = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
        with settled_torch():
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            product = values @ values
        exact = values.double() @ values.double()
        assert (product - exact).abs().max() < 1e-4  # rounded to bfloat16 it is 0.1 off
        assert settings_now() == before
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


def told_by_a_fork(ask):
    """What `ask()` says in a process that is forked off this one."""
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    process = context.Process(target=lambda: told.put(ask()))
    process.start()
    said = told.get(timeout=60)
    process.join()
    return said


def threads_while_settled(threads=None):
    try:
        with settled_torch(threads):
            return torch.get_num_threads()
    except ConfigError as error:
        return error.fix


forks = pytest.mark.skipif(sys.platform != "linux", reason="whose threads have names")


@forks
def test_a_forked_process_computes_by_one_thread_as_its_threads_stay_behind(monkeypatch):
    monkeypatch.setattr("universal_neurons.torch_state._polars_has_begun", lambda: False)
    monkeypatch.setattr("universal_neurons.torch_state.FORK.polars_began", False)
    assert told_by_a_fork(threads_while_settled) == 1
    assert told_by_a_fork(lambda: threads_while_settled(3)) == 3
    assert threads_while_settled(2) == 2


@forks
def test_a_process_forked_after_polars_computed_is_refused_by_name():
    pl.DataFrame({"a": [2, 1]}).sort("a")
    assert told_by_a_fork(threads_while_settled) == 'multiprocessing.get_context("spawn")'
    assert threads_while_settled(2) == 2
