"""Labels of a user's code that changes the process: right labels, and the process as it was."""

import os
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from test_own_labels import members, read, write

from universal_neurons.labels.user_code import Contained

CHANGES = {
    "closed streams": "import sys\nsys.stdout.close(); sys.stderr.close(); sys.stdin.close(); sys.__stdout__.close()",
    "closed buffers": "import sys\nsys.stdout.buffer.close(); getattr(sys.stderr.buffer, 'raw', sys.stderr).close()",
    "closed descriptors": "import os\nos.close(0); os.close(1); os.close(2)",
    "a closed file of a descriptor": "open(1, 'w').close()",
    "no streams": "import sys\nsys.stdout = sys.stderr = sys.stdin = None\nprint('x')",
    "streams that are gone": "import sys\ndel sys.stdout, sys.stderr, sys.stdin",
    "another encoding": "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.detach())\nprint('x')",
    "streams as contexts": "import sys\nwith sys.stdout as out: out.write('x')",
    "a recursion limit": "import sys\nsys.setrecursionlimit(len(sys._current_frames()) + 150)",
    "another folder": "import os\nos.chdir('/')",
    "a folder that goes": "import os, tempfile\nwith tempfile.TemporaryDirectory() as d: os.chdir(d)",
    "an environment": "import os\nos.environ.clear()\nos.environ['UNWANTED'] = '1'\nos.environ = {}",
    "a path": "import sys\nsys.path.clear()\nsys.path = []",
    "filters": "import warnings\nwarnings.simplefilter('error')\nwarnings.showwarning = None",
    "seeds": "import random, numpy, torch\nrandom.seed(1); numpy.random.seed(1); torch.manual_seed(1)",
    "NumPy's errors": "import numpy\nnumpy.seterr(all='raise')",
    "torch's defaults": "import torch\ntorch.set_default_dtype(torch.float64); torch.set_grad_enabled(False)\n"
    "torch.set_default_device('meta'); torch.set_num_threads(torch.get_num_threads() + 1)",
}


def state():
    """What the process is, as far as later code could tell."""
    streams = [getattr(sys, name) for name in ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")]
    descriptors = [(stat.st_dev, stat.st_ino) for stat in map(os.fstat, range(3))]
    chance = str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002
    defaults = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(), torch.get_num_threads()
    shared = os._exit, os.environ, dict(os.environ), sys.path, list(sys.path)
    closed = [stream.closed for stream in streams]
    return (streams, closed, descriptors, os.getcwd(), sys.getrecursionlimit(), chance, defaults, shared, np.geterr(),
            list(warnings.filters), warnings.showwarning)  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
@pytest.mark.parametrize("later", [False, True])
def test_the_process_is_as_it_was_and_the_labels_are_right(tmp_path, case, later):
    body = "".join(f"    {line}\n" for line in CHANGES[case].split("\n"))
    now, then = ("", "_todo and _todo.pop()()") if later else ("_todo.pop()()\n", "")
    text = f"def _change():\n{body}_todo = [_change]\n{now}def cat(s):\n    {then}\n    return s.strip() == 'cat'\n"
    path = write(tmp_path, "mine.py", text)
    before = state()
    assert members(read(path)) == {"cat": [1, 2]}
    assert state() == before


def test_what_a_file_sets_lasts_for_its_functions(tmp_path):
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner", "words", "cat")
    text = f"import os\nos.chdir({str(tmp_path / 'inner')!r})\ndef cat(s): return s.strip() == open('words').read()\n"
    assert members(read(write(tmp_path, "mine.py", text))) == {"cat": [1, 2]}


def test_what_users_write_is_seen(tmp_path, capfd):
    text = "import sys\nprint('one', flush=True)\nsys.stdout.buffer.write(b'two')\nsys.stderr.write('three')\n"
    read(write(tmp_path, "mine.py", text + "def f(s): return True"))
    sys.stdout.flush()
    written = capfd.readouterr()
    assert (written.out.split(), written.err) == (["one", "two"], "three")


def test_a_process_that_a_user_starts_may_leave(tmp_path):
    text = "import os\ndef f(s):\n    child = os.fork()\n    if not child: os._exit(7)\n"
    text += "    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7 and s == '12'\n"
    assert members(read(write(tmp_path, "mine.py", text))) == {"f": [5]}


def test_an_error_leaves_the_process_as_it_was():
    before, chance = state(), random.getstate()  # type checks of the tests themselves draw from `random`
    with pytest.raises(ZeroDivisionError), Contained():
        exec("import os, random, sys\nsys.stdout.close(); os.chdir('/'); random.seed(1)\n1 / 0")
    assert (random.getstate(), state()) == (chance, before)


def test_without_streams_and_torch():
    code = (
        "import os, sys\n"
        "from universal_neurons.labels.user_code import Contained\n"
        "assert 'torch' not in sys.modules and sys.stdout is None\n"
        "with Contained(): sys.stdout = 3\n"
        "assert sys.stdout is None\n"
    )
    subprocess.run(["sh", "-c", '"$0" -c "$1" >&- <&-', sys.executable, code], check=True)
