"""What the README says in Python is run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from nedx.fitting import load_decoding_recipe, load_fit_recipe

README = Path(__file__).parents[1] / "README.md"


def test_the_tour_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL):
        exec(compile(block, str(README), "exec"), {})
    printed = capsys.readouterr().out
    assert "V1" in printed
    assert "synthetic" in printed


def test_the_recipes_are_some(tmp_path):
    fit, decode = re.findall(r"```yaml\n(.*?)```", README.read_text(), flags=re.DOTALL)
    (tmp_path / "fit.yaml").write_text(fit)
    assert load_fit_recipe(tmp_path / "fit.yaml").responses.place == "sim-fmri"
    (tmp_path / "decode.yaml").write_text(decode)
    assert load_decoding_recipe(tmp_path / "decode.yaml").responses.place == "sim-eeg"


def test_the_readme_names_only_what_is_there():
    text = README.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (README.parent / target).exists(), target
    for command in re.findall(r"^make (\w+)", text, flags=re.MULTILINE):
        assert re.search(rf"^{command}:", (README.parent / "Makefile").read_text(), re.MULTILINE)
