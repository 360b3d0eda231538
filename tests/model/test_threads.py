from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

import verifix
from verifix.cli.main import main
from verifix.losses import cross_entropy
from verifix.model import threads
from verifix.model.borrow import one_blas_thread
from verifix.model.samples import read_samples
from verifix.model.threads import (
    EVERY_PROCESSOR,
    PER_THREAD,
    available_processors,
    one_thread,
    starting_counts,
    suitable_count,
    threads_for,
)
from verifix.model.work import work_of
from verifix.recipe.stages import heads

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("work", "processors", "count"),
    [
        (0, 16, 1),
        (2 * PER_THREAD - 1, 16, 1),
        (2 * PER_THREAD, 16, 2),
        (EVERY_PROCESSOR - 1, 16, 15),
        (EVERY_PROCESSOR, 16, 16),
        (EVERY_PROCESSOR, 64, 16),
        (EVERY_PROCESSOR - 1, 2, 1),
        (EVERY_PROCESSOR, 2, 2),
        (1e15, 1, 1),
    ],
)
def test_more_work_takes_more_threads_and_one_processor_is_left_to_others_unless_it_is_large(work, processors, count):
    assert suitable_count(work, processors) == count


def with_files(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture
def eight_allowed(monkeypatch):
    monkeypatch.setattr(threads, "allowed_processors", lambda: set(range(8)))


V1 = "12:freezer:/\n4:cpu,cpuacct:/docker/abc\n0::/system"


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "6400000 100000"}, 8),
        (
            {
                "proc/self/cgroup": "0::/user.slice/job",
                "sys/fs/cgroup/user.slice/cpu.max": "400000 100000",
                "sys/fs/cgroup/user.slice/job/cpu.max": "max 100000",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "0::/user.slice/job",
                "sys/fs/cgroup/user.slice/cpu.max": "400000 100000",
                "sys/fs/cgroup/user.slice/job/cpu.max": "200000 100000",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "500000",
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000",
            },
            5,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            8,
        ),
    ],
)
def test_quotas_of_control_groups_limit_the_processors(files, count, tmp_path, eight_allowed):
    assert available_processors(with_files(tmp_path, files)) == count


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity mask on this system")
def test_the_affinity_mask_limits_the_processors(tmp_path):
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_processors(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_torch_may_start_with_logical_processors_or_physical_cores(tmp_path, eight_allowed):
    assert starting_counts(tmp_path) == {8}
    folder = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    siblings = {folder.format(n): f"{n % 4},{n % 4 + 4}" for n in range(8)}
    assert starting_counts(with_files(tmp_path, siblings)) == {4, 8}


def in_child(code: str, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in (*threads.COUNT_VARIABLES, *threads.WAIT_VARIABLES)}
    path = str(Path(verifix.__file__).parents[1])
    where = {**clean, "PYTHONPATH": path, "OMP_DISPLAY_ENV": "true", **environment}
    words = [sys.executable, "-c", code]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=where)
    return result.stdout + result.stderr


def test_the_number_that_torch_starts_with_is_known():
    code = "import torch; from verifix.model.threads import *; print(set_by_user(torch.get_num_threads()))"
    assert "False" in in_child(code)
    assert "True" in in_child(code, OMP_NUM_THREADS="1")


@pytest.fixture
def eight(monkeypatch):
    """A process whose torch has started with eight threads, on eight processors."""
    for name in threads.COUNT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "starting_counts", lambda _: {8})
    monkeypatch.setattr(threads, "available_processors", lambda: 8)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


def test_the_count_suits_the_work_inside_and_is_given_back(eight):
    with threads_for(lambda: 3 * PER_THREAD):
        assert torch.get_num_threads() == 3
        with one_thread():
            assert torch.get_num_threads() == 1
            with threads_for(lambda: 5 * PER_THREAD):
                assert torch.get_num_threads() == 5
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 8


def test_the_count_is_given_back_after_an_exception(eight):
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == 8

    def unknown() -> float:
        assert torch.get_num_threads() == 1
        raise KeyError

    with pytest.raises(KeyError), threads_for(unknown):
        pass
    assert torch.get_num_threads() == 8
    with threads_for(lambda: 2 * PER_THREAD):  # nothing of what failed is remembered
        assert torch.get_num_threads() == 2


def test_a_quota_limits_large_work(eight, monkeypatch):
    monkeypatch.setattr(threads, "available_processors", lambda: 4)
    with threads_for(lambda: EVERY_PROCESSOR):
        assert torch.get_num_threads() == 4
    monkeypatch.setattr(threads, "available_processors", lambda: 1)
    with threads_for(lambda: EVERY_PROCESSOR):
        assert torch.get_num_threads() == 1


def never() -> float:
    raise AssertionError("the work was measured although there is nothing to choose")


@pytest.mark.parametrize("variable", threads.COUNT_VARIABLES)
def test_a_number_set_in_the_environment_stays(variable, eight, monkeypatch):
    monkeypatch.setenv(variable, "8")
    with threads_for(never):
        assert torch.get_num_threads() == 8


@pytest.mark.parametrize("count", [1, 3])
def test_a_number_set_in_torch_stays(count, eight):
    torch.set_num_threads(count)
    with threads_for(never):
        assert torch.get_num_threads() == count
    assert torch.get_num_threads() == count


def test_what_another_thread_of_python_chose_is_not_taken_for_the_users_own(eight):
    seen = []

    def other() -> None:
        with threads_for(lambda: 6 * PER_THREAD):
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())

    with one_thread():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert torch.get_num_threads() == 1
    assert seen == [6, 8]
    assert torch.get_num_threads() == 8


class Noting(nn.Linear):
    """Notes with how many threads it is run."""

    seen: list[int] = []  # noqa: RUF012 - copies share it

    def forward(self, x):
        if len(x) == 7:
            raise ZeroDivisionError
        self.seen.append(torch.get_num_threads())
        return super().forward(x)


def noting() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    Noting.seen.clear()
    return Noting(6, 3), (torch.randn(60, 6), torch.arange(60) % 3)


CALLS = {
    "correct": lambda model, data: verifix.correct(model, data, progress=False),
    "prove": lambda model, data: verifix.prove(
        model, data, alpha=10, progress=False, check_inputs=False, verified_from="unseen"
    ),
    "trust": lambda model, data: verifix.trust(model, data, count=30, progress=False),
    "moments": lambda model, data: verifix.collect_moments(model, data, progress=False),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_suits_its_work_and_gives_the_count_back(call, eight, monkeypatch):
    CALLS[call](*noting())
    assert set(Noting.seen) == {1}
    assert torch.get_num_threads() == 8
    monkeypatch.setattr(threads, "PER_THREAD", 6 * 3 * 60 / 5)
    CALLS[call](*noting())
    assert Noting.seen[-1] == 5
    assert Noting.seen == sorted(Noting.seen)  # on one thread until the work is known
    assert set(Noting.seen) == {1, 5}
    assert torch.get_num_threads() == 8


@pytest.mark.parametrize("call", CALLS)
def test_every_call_gives_the_count_back_after_an_error(call, eight):
    model, (_, y) = noting()
    with pytest.raises(verifix.DataError):
        CALLS[call](nn.Sequential(nn.Flatten(), model), (torch.randn(60, 5), y))
    assert torch.get_num_threads() == 8


@pytest.mark.parametrize("call", ["correct", "prove", "trust"])
def test_a_copy_that_runs_the_original_is_refused_before_its_work_is_measured(call, eight):
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)).train()
    old = model[0].forward
    model[0].forward = lambda x: old(x)  # noqa: PLW0108 - a closure is the point
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(verifix.UsageError, match="of the original"):
        CALLS[call](model, noting()[1])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("call", CALLS)
def test_every_call_keeps_the_users_count(call, eight):
    torch.set_num_threads(3)
    CALLS[call](*noting())
    assert set(Noting.seen) == {3}
    assert torch.get_num_threads() == 3


def test_a_command_runs_on_one_thread_until_its_work_is_known(eight, tmp_path, capsys):
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        print('threads', torch.get_num_threads())\n"
        "        return super().forward(x)\n"
        "def build():\n    return Net(6, 3)\n"
    )
    assert main(["inspect", "--model", f"py:{tmp_path}/net.py:build", "--input-shape", "6"]) == 0
    assert "threads 1" in capsys.readouterr().err
    assert torch.get_num_threads() == 8


def blas_counts() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture
def three_blas_threads(monkeypatch):
    import scipy.optimize  # noqa: F401 - brings its BLAS

    for name in threads.BLAS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with threadpool_limits(3, user_api="blas"):
        yield


def test_scipy_multiplies_on_one_thread_and_gets_its_count_back(three_blas_threads):
    with one_blas_thread(), one_blas_thread():
        assert blas_counts() == {1}
    assert blas_counts() == {3}
    with pytest.raises(KeyError), one_blas_thread():
        raise KeyError
    assert blas_counts() == {3}


@pytest.mark.parametrize("variable", threads.BLAS_VARIABLES)
def test_a_number_for_scipy_that_the_user_set_stays(variable, three_blas_threads, monkeypatch):
    monkeypatch.setenv(variable, "3")
    with one_blas_thread():
        assert blas_counts() == {3}


def test_heads_are_fitted_on_one_thread(three_blas_threads, monkeypatch):
    seen = []

    def noting_loss(logits, labels):
        seen.append(blas_counts())
        return cross_entropy(logits, labels)

    monkeypatch.setattr(heads, "cross_entropy", noting_loss)
    x, y, zero = torch.randn(20, 4).double(), torch.arange(20) % 2, torch.zeros(2, 4).double()
    heads.fit_logistic(x, y, zero, 0.1, free_bias=True, offset=torch.zeros(2).double())
    assert {1} in seen
    assert all(counts == {1} for counts in seen)
    assert blas_counts() == {3}


def samples_of(*shape: int, batch: int | str = "auto", n: int = 100):
    return read_samples((torch.randn(n, *shape), torch.arange(n) % 2), batch)


@pytest.mark.parametrize(
    ("model", "shape", "work"),
    [
        (nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), (8,), (8 * 4 + 4 * 2) / 2),
        (nn.Sequential(nn.Linear(8, 4, bias=False), nn.Flatten()), (8,), 8 * 4),
        (nn.Sequential(nn.Conv2d(2, 6, 3, groups=2), nn.Flatten()), (2, 5, 7), 6 * 9 * 3 * 5),
        (nn.Sequential(nn.ConvTranspose1d(3, 4, 2), nn.Flatten()), (3, 9), 3 * 9 * 4 * 2),
        (nn.Sequential(nn.ReLU()), (2,), 0),
    ],
)
def test_the_work_is_the_mean_multiplication_of_one_batch(model, shape, work):
    assert work_of(model, samples_of(*shape, batch=32), CPU) == 32 * work
    assert work_of(model, samples_of(*shape), CPU) == 64 * work
    assert work_of(model, samples_of(*shape, n=1), CPU) == work


def test_measuring_the_work_leaves_no_trace():
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    samples, state = samples_of(6), torch.get_rng_state()
    work_of(model, samples, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


COMMAND = "import sys; sys.argv[1:] = {}; import runpy; runpy.run_module('verifix', run_name='__main__')"
MISSING = COMMAND.format(["inspect", "--model", "py:missing.py:build", "--input-shape", "6"])


def test_the_command_line_sets_passive_waiting_before_torch_is_imported():
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in in_child(MISSING)


@pytest.mark.parametrize(("variable", "shown"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7000")])
def test_the_users_own_way_of_waiting_stays(variable, shown):
    said = in_child(MISSING, **{variable: shown, "OMP_DISPLAY_ENV": "verbose"})
    assert f"{variable} = '{shown}'" in said
    assert "PASSIVE" not in said or variable == "GOMP_SPINCOUNT"


def test_where_torch_is_imported_already_or_the_process_is_not_ours_nothing_is_set():
    show = "import os; print(os.environ.get('OMP_WAIT_POLICY'))"
    assert "None" in in_child(f"import torch; from verifix.model.threads import *; wait_passively(); {show}")
    assert "None" in in_child(f"from verifix.cli.main import main; main(['undo']); {show}")
    assert "PASSIVE" in in_child(f"import sys; sys.argv[1:] = []; from verifix.cli.main import main; main(); {show}")


def test_what_precedes_torch_is_importable_without_it():
    assert "False" in in_child("import sys; from verifix.model.threads import *; print('torch' in sys.modules)")
