"""Seeds and their checkpoints as users name them: paths taken literally, steps that are numbers."""

import json

import pytest

from universal_neurons.dynamics.training_runs import find_training, step_of, trainer_step
from universal_neurons.errors import InputError, MissingFileError, StepError


def seed(root, name, steps=("step-1", "step-2")):
    """A folder with checkpoints; the configuration is all that is looked at."""
    for step in steps:
        (root / name / step).mkdir(parents=True)
        (root / name / step / "config.json").write_text("{}")
    return str(root / name)


def test_characters_of_a_path_stand_for_themselves(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = [seed(tmp_path, "s[1]"), seed(tmp_path, "s*"), seed(tmp_path, "a@b")]
    found = find_training([given[0], given[1], "~/a@b"])
    assert found.seeds == ("s[1]", "s*", "a@b")
    assert [c.models[0] for c in found.checkpoints] == [f"{given[0]}/step-1", f"{given[0]}/step-2"]
    assert [str(folder) for folder in found.folders] == given


@pytest.mark.parametrize("given", ["x" * 300, "a\0b", "~nosuchuser/x", "./nowhere"])
def test_what_can_be_no_path_is_refused(tmp_path, given):
    with pytest.raises(MissingFileError):
        find_training([seed(tmp_path, "a"), given])
    with pytest.raises(InputError):
        find_training([seed(tmp_path, "b"), seed(tmp_path, "c")], [given, "step-1"])


def test_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match="link"):
        find_training([seed(tmp_path, "a"), str(tmp_path / "link")])


def test_a_step_has_at_most_eighteen_digits():
    assert step_of("step-" + "9" * 18) == 10**18 - 1
    assert step_of("step-" + "9" * 19) is None
    assert step_of("9" * 5000) is None


@pytest.mark.parametrize(
    "text", ["[]", "7", "{}", '{"global_step": "x"}', '{"global_step": -1}', '{"global_step": 1e400}', "[" * 10_000]
)
def test_a_trainer_that_does_not_say_its_step_is_a_step_error(tmp_path, text):
    assert trainer_step(tmp_path) is None
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(StepError) as caught:
        trainer_step(tmp_path)
    assert len(str(caught.value)) < 1000
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 7}))
    assert trainer_step(tmp_path) == 7
