"""The command line: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import nedx
from nedx.cli import main
from tests.berg.responses import write_responses


@pytest.fixture
def store(eeg, tmp_path):
    return nedx.to_zarr(eeg, tmp_path / "eeg.zarr").url


def test_list(capsys):
    assert main(["list", "--modality", "eeg"]) == 0
    said = capsys.readouterr().out
    assert "sim-eeg" in said
    assert "sim-fmri" not in said


def test_list_json_and_words(capsys):
    assert main(["list", "gabor", "--kind", "model", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert {entry["kind"] for entry in entries} == {"model"}
    assert all("gabor" in entry["id"] for entry in entries)


def test_info_of_an_id(capsys):
    assert main(["info", "sim-fmri"]) == 0
    assert "synthetic" in capsys.readouterr().out
    assert main(["info", "sim-fmri", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "sim-fmri"


def test_info_of_a_store(store, capsys):
    assert main(["info", store]) == 0
    assert "sub-01, sub-02" in capsys.readouterr().out
    assert main(["info", store, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["modality"] == "eeg"


def test_errors_are_one_message_on_stderr(capsys):
    assert main(["info", "sim-fmry"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "did you mean" in captured.err
    assert "sim-fmri" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["verify", "x.zarr", "--sample", "2"],
        ["synth"],
        ["synth", "run", "x.zarr", "--part", "5/4"],
        ["synth", "run", "x.zarr", "--part", "a/b"],
        ["encode", "a", "b", "c", "--time", "soon"],
    ],
)
def test_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: nedx" in capsys.readouterr().err


def test_validate(store, eeg, tmp_path, capsys):
    assert main(["validate", store]) == 0
    assert "obeys the schema" in capsys.readouterr().err
    wrong = eeg.drop_vars("image_id").assign_attrs(modality="brain")
    nedx.to_zarr(wrong, tmp_path / "wrong.zarr")
    assert main(["validate", str(tmp_path / "wrong.zarr")]) == 1
    said = capsys.readouterr().err
    assert "image_id" in said
    assert "'brain'" in said


def test_verify_finds_a_flipped_byte(store, tmp_path, capsys):
    assert main(["verify", store]) == 0
    assert main(["verify", store, "--json"]) == 0
    found = capsys.readouterr().out
    assert json.loads(found[found.index("{") :])["ok"] is True
    chunk = next(p for p in (tmp_path / "eeg.zarr" / "response" / "c").rglob("*") if p.is_file())
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    assert main(["verify", store]) == 1
    assert "response" in capsys.readouterr().out


def test_cite(capsys):
    assert main(["cite", "sim-eeg"]) == 0
    assert "Synthetic" in capsys.readouterr().out
    assert main(["cite", "sim-eeg", "--bibtex"]) == 0
    assert "@" in capsys.readouterr().out


def test_doctor(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["xarray"] == xr.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert "cores" in found["devices"]["cpu"]
    assert set(found["extras"]) >= {"gcs", "s3", "hdf5", "plot"}
    assert main(["doctor"]) == 0
    assert nedx.__version__ in capsys.readouterr().out


def test_the_installed_command():
    command = [sys.executable, "-m", "nedx.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"nedx {nedx.__version__}"


def test_demo_leaves_other_folders_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["demo", "--into", str(tmp_path)]) == 1
    assert "--into" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_import_and_its_errors(tmp_path, capsys):
    written = write_responses(tmp_path / "ned", "things", modality="eeg", count=6)
    words = ["--modality", "eeg", "--dataset", "things_eeg_2", "--model", "vit_b_32"]
    words += ["--image-set", "things"]
    place = str(tmp_path / "out.zarr")
    assert main(["import", "berg", str(tmp_path / "ned"), place, *words, "--subject", "1"]) == 0
    np.testing.assert_allclose(nedx.open(place)["response"], written.values[None], rtol=2.0**-11)
    assert main(["validate", place]) == 0
    assert main(["import", "berg", str(tmp_path / "ned"), place, *words, "--subject", "3"]) == 1
    assert "sub-03" in capsys.readouterr().err


def test_pull_of_a_subject_that_is_not_there(capsys):
    assert main(["pull", "eeg-things_eeg_2-vit_b_32", "--subject", "11"]) == 1
    assert "no subject 'sub-11' in" in capsys.readouterr().err
    assert main(["list", "--roi", "mTL-bodies", "--kind", "model"]) == 0
    assert "fmri-nsd_fsaverage-vit_b_32" in capsys.readouterr().out
