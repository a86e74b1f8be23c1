"""The README's Python runs as it stands, but for a file's name and a small network."""

import pathlib
import re

import pytest
from support.small_weights import INFO, small_variables
from support.videos import encode, numbered

from i3d_jax import weights

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_its_python_classifies_a_video(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights.save("rgb_scratch.safetensors", small_variables(), INFO)
    (tmp_path / "video.mp4").write_bytes(encode(numbered(64), [*range(0, 64 * 40, 40)], "mp4"))
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 1
    found = {}
    exec(blocks[0].replace('"rgb_scratch"', '"rgb_scratch.safetensors"'), found)  # noqa: S102
    assert found["clip"].shape == (64, 32, 32, 3) and found["logits"].shape == (1, 7)
    assert capsys.readouterr().out.strip() in INFO.classes


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_it_names_the_two_commands_that_set_everything_up(command):
    assert f"`{command}`" in README.read_text()


def test_it_defines_the_release_where_it_names_it_first():
    text = README.read_text()
    first = text.lower().index("release")
    assert text[first - 5 :].startswith("The *release*") and "google-deepmind/kinetics-i3d" in text
