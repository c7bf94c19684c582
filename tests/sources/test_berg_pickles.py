"""Pickled files read back as they were written, and nothing in them is run."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest

from nedx.errors import CorruptStoreError, CredentialsError, ModelError, NedxError, StoreError
from nedx.sources.berg.pickles import UNREAD, read_npy, read_pt
from nedx.store.location import Location
from tests.berg import tree
from tests.berg.models import save
from tests.memory import needs_proc
from tests.servers import HttpServer, S3Server

SPOILED = [
    ("cut to nothing", b""),
    ("a web page", b"<!DOCTYPE html><html>403</html>" * 40),
]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    return tmp_path_factory.mktemp("bucket")


@pytest.fixture(scope="module")
def wrote(bucket):
    return tree.write_tree(bucket, features=96)


@pytest.fixture(scope="module")
def web(bucket, wrote):
    server = HttpServer(bucket)
    yield server
    server.close()


@pytest.fixture
def here(tmp_path):
    return Location.of(tmp_path)


def key_of(bucket, pattern, within=""):
    found = [p for p in bucket.rglob(pattern) if within in str(p)]
    assert len(found) == 1, found
    return found[0].relative_to(bucket).as_posix()


def check_same(found, expected):
    """Equal through all containers, arrays with their dtype; objects by their attributes."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            check_same(found[key], expected[key])
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        if expected.dtype == object:
            assert found.shape == expected.shape
            return check_same(found.ravel().tolist(), expected.ravel().tolist())
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)
    elif hasattr(expected, "__dict__"):
        assert type(found) is SimpleNamespace
        state = {k: v for k, v in vars(found).items() if k != "_sklearn_version"}
        check_same(state, vars(expected))
    else:
        assert type(found) is type(expected)
        assert found == expected


NPY = [
    ("eeg-1", "modality-eeg", "*_subject-01.npy", "vit_b_32"),
    ("eeg-2", "modality-eeg", "*_subject-02.npy", "vit_b_32"),
    ("eeg-alexnet", "modality-eeg", "*_subject-01.npy", "alexnet"),
    ("fsaverage-1", "nsd_fsaverage", "*_subject-01.npy", ""),
    ("fsaverage-2", "nsd_fsaverage", "*_subject-02.npy", ""),
    ("meg-1", "things_meg_1", "*_P1*.npy", ""),
    ("meg-2", "things_meg_1", "*_P2*.npy", ""),
    ("things-fmri", "things_fmri_1", "*_sub-01.npy", ""),
    ("tvsd-N", "tvsd", "*_monkeyN.npy", ""),
]


@pytest.mark.parametrize("served", [False, True])
@pytest.mark.parametrize(("name", "folder", "pattern", "model"), NPY)
def test_every_npy_reads_back(bucket, wrote, web, served, name, folder, pattern, model):
    root = Location.of(web.url if served else bucket)
    for kind in ("weights", "metadata"):
        within = {p for p in bucket.rglob(f"{kind}{pattern[1:]}") if folder in str(p)}
        (path,) = (p for p in within if f"model-{model}" in str(p))
        check_same(read_npy(root, path.relative_to(bucket).as_posix()), wrote[name][kind])


@pytest.mark.parametrize("served", [False, True])
def test_every_pt_reads_back(bucket, wrote, web, served):
    root = Location.of(web.url if served else bucket)
    for name, file in (("V1", "V1"), ("lateral-1", "lateral_split-1")):
        found = read_pt(root, key_of(bucket, f"weights_sub-01_roi-{file}.pt"))
        expected = wrote[f"fwrf-{name}"]["weights"]
        assert UNREAD in expected
        check_same(found, {k: v for k, v in expected.items() if k != UNREAD})
    assert sum(v.size for v in found["best_params"]["fwrfs"][1].values()) == 4 * 2292


def test_ned_files_read_back(tmp_path, here):
    wrote = tree.write_ned_eeg(tmp_path, 3, 40)
    wrote["fmri"] = tree.write_fwrf_metadata(tmp_path, 2, "V3", 6, ned=True)
    keys = {key.rpartition("/")[2]: key for key in here.list()}
    for name, content in (
        ("StandardScaler_param.npy", wrote["weights"]["scaler_param"]),
        ("pca_param.npy", wrote["weights"]["pca_param"]),
        ("LinearRegression_param_sub-03.npy", wrote["weights"]["reg_param"]),
        ("metadata_sub-03.npy", wrote["metadata"]),
        ("metadata_sub-02_roi-V3.npy", wrote["fmri"]),
    ):
        check_same(read_npy(here, keys[name]), content)


def test_the_unread_half_of_a_pt_is_not_fetched(bucket, web):
    key = key_of(bucket, "weights_sub-01_roi-V1.pt")
    web.counter.forget()
    read_pt(Location.of(web.url), key)
    size = (bucket / key).stat().st_size
    assert size > 11e6
    # The part read ahead may reach into the other half.
    assert web.counter.bytes() < size / 2 + 2.5 * 2**20


def test_from_s3(tmp_path, wrote, bucket):
    server = S3Server()
    try:
        url = server.upload(bucket, "berg")
        root = Location.of(url, storage_options=server.options)
        key = key_of(bucket, "weights_subject-02.npy", "eeg")
        check_same(read_npy(root, key), wrote["eeg-2"]["weights"])
        key = key_of(bucket, "weights_sub-01_roi-lateral_split-2.pt")
        found = read_pt(root, key)["best_params"]
        check_same(found, wrote["fwrf-lateral-2"]["weights"]["best_params"])
        with pytest.raises(StoreError, match=r"no file s3://nedx/berg/absent.npy"):
            read_npy(root, "absent.npy")
        with server.counter.faulty("403"), pytest.raises(CredentialsError, match="AWS_ACCESS"):
            read_npy(root, key)
    finally:
        server.close()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_of_every_kind(tmp_path, here, protocol):
    shared = np.arange(3.0)
    content = {
        "column order": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "big-endian": np.arange(5, dtype=">i4"),
        "empty": np.zeros((0, 7), np.int64),
        "scalar array": np.array(3, np.uint8),
        "text": np.array(["V1", "FFA-1"]),
        "objects": np.array(["x", None, shared], dtype=object),
        "complex": np.array([1 + 2j]),
        "mask": np.array([[True, False]]),
        "numbers": [np.float32(1.5), np.int64(-3), np.str_("V1"), np.bool_(1)],
        "nested": ({"a": [shared, shared]}, None, 1.5, 2**70, b"raw"),
    }
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|O", "fortran_order": False, "shape": ()}
        )
        pickle.dump(np.array(content, dtype=object), file, protocol=protocol)
    check_same(read_npy(here, "a.npy"), content)


def test_numpy_of_version_1_spells_its_modules_otherwise(tmp_path, here):
    body = pickle.dumps(np.array({"x": np.arange(3.0)}, dtype=object), 2)
    old = body.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert old != body
    write_pickle(tmp_path, old)
    check_same(read_npy(here, "a.npy"), {"x": np.arange(3.0)})


def test_strided_and_shared_tensors(tmp_path, here):
    import torch

    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    content = {
        "transposed": base.T,
        "part": base[1:3, 2:],
        "int": torch.tensor([1, 2]),
        "half": torch.ones(2, dtype=torch.float16),
        "flag": torch.tensor(True),
        "in order": OrderedDict(a=base[0]),
    }
    torch.save(content, tmp_path / "a.pt")
    found = read_pt(here, "a.pt")
    for key in ("transposed", "part", "int", "half", "flag"):
        check_same(found[key], content[key].numpy())
    check_same(found["in order"]["a"], base[0].numpy())


class Evil:
    """Writes a file when unpickled by pickle itself."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


class TestRefused:
    def test_the_test_can_fail(self, tmp_path):
        harm = tmp_path / "harm"
        pickle.loads(pickle.dumps(Evil(harm))).close()
        assert harm.exists()

    def test_a_call_is_not_made(self, tmp_path, here):
        import torch

        harm = tmp_path / "harm"
        save(tmp_path / "a.npy", {"scaler_param": [Evil(harm)]})
        torch.save({"args.": Evil(harm)}, tmp_path / "a.pt")
        for read, name in ((read_npy, "a.npy"), (read_pt, "a.pt")):
            with pytest.raises(ModelError, match=rf"{name} is refused: it names .*io.open"):
                read(here, name)
        assert not harm.exists()

    def test_classes_of_other_packages(self, tmp_path, here):
        import pandas as pd

        save(tmp_path / "a.npy", {"table": pd.DataFrame({"a": [1]})})
        with pytest.raises(ModelError, match=r"a.npy is refused: it names pandas"):
            read_npy(here, "a.npy")

    @pytest.mark.parametrize(
        "name", ["sklearn.decomposition._pca._assess_dimension", "numpy.load", "torch.load"]
    )
    def test_other_names_of_known_modules(self, tmp_path, here, name):
        module, _, attribute = name.rpartition(".")
        write_pickle(tmp_path, f"c{module}\n{attribute}\n.".encode())
        with pytest.raises(ModelError, match=f"names {name}"):
            read_npy(here, "a.npy")

    def test_bytes_are_never_taken_for_objects(self, tmp_path, here):
        """With numpy's own functions these would make pointers of a file's bytes."""
        forged = [
            b"cnumpy\nndarray\n((K\x01tcnumpy\ndtype\n(X\x01\x00\x00\x00OtRC\x08AAAAAAAAtR.",
            b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x01\x00\x00\x00OtRC\x08AAAAAAAAtR.",
            b"cnumpy\ndtype\n(X\x01\x00\x00\x00VtR.",
            b"ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
        ]
        for body in forged:
            write_pickle(tmp_path, body)
            with pytest.raises(CorruptStoreError, match=r"a.npy is cut short or damaged"):
                read_npy(here, "a.npy")

    def test_tensors_lie_within_their_storage(self, tmp_path, here):
        import torch

        torch.save({"x": torch.zeros(4)}, tmp_path / "a.pt")
        whole = (tmp_path / "a.pt").read_bytes()
        # K\x04\x85 is the shape (4,).
        assert whole.count(b"K\x04\x85") == 1
        forge(tmp_path / "a.pt", b"K\x04\x85", b"K\x40\x85")
        with pytest.raises(CorruptStoreError, match=r"a.pt is cut short or damaged"):
            read_pt(here, "a.pt")


def write_pickle(folder, body):
    save(folder / "a.npy", {})
    header = (folder / "a.npy").read_bytes()[:128]
    (folder / "a.npy").write_bytes(header + body)


def forge(path, old, new):
    """Change the pickle in a zip file, and the checksums with it."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)


class TestBadInput:
    @pytest.fixture(params=["npy", "pt"])
    def file(self, request, bucket, wrote, tmp_path):
        """A copy of a good file, and what reads it."""
        pattern = {
            "npy": "encoding_models_weights/weights_sub-01.npy",
            "pt": "encoding_models_weights/weights_sub-01_roi-V1.pt",
        }[request.param]
        (source,) = bucket.rglob(pattern)
        path = tmp_path / source.name
        path.write_bytes(source.read_bytes())
        return path, {"npy": read_npy, "pt": read_pt}[request.param]

    def test_cut_short(self, file, here):
        path, read = file
        whole = path.read_bytes()
        for size in (1, 60, 200, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(CorruptStoreError, match=rf"{path.name} .*Fetch it again"):
                read(here, path.name)

    @pytest.mark.parametrize(("what", "content"), SPOILED)
    def test_something_else(self, file, here, what, content):
        path, read = file
        path.write_bytes(content)
        with pytest.raises(CorruptStoreError, match=rf"{path.name} is not a .*Fetch it again"):
            read(here, path.name)

    def test_a_wrong_byte_never_escapes(self, file, here):
        path, read = file
        if path.suffix == ".pt":
            import torch

            torch.save({"x": torch.arange(6.0), "y": np.arange(3)}, path)
        else:
            save(path, {"x": np.arange(6.0), "y": [np.float32(1), "text"], "z": {}})
        whole = bytearray(path.read_bytes())
        rng = np.random.default_rng(0)
        refused = 0
        for place in rng.integers(0, len(whole), 300):
            damaged = whole.copy()
            damaged[place] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            try:
                read(here, path.name)
            except NedxError as error:
                assert path.name in str(error)  # noqa: PT017
                refused += 1
        assert refused > 50

    def test_missing(self, here, tmp_path):
        for read in (read_npy, read_pt):
            with pytest.raises(StoreError, match=r"there is no file .*absent.npy. Check the root"):
                read(here, "absent.npy")
        (tmp_path / "folder.npy").mkdir()
        with pytest.raises(StoreError, match=r"folder.npy cannot be read"):
            read_npy(here, "folder.npy")

    def test_other_contents(self, here, tmp_path):
        import torch

        np.save(tmp_path / "a.npy", np.zeros((3, 2)))
        with pytest.raises(ModelError, match=r"array \(3, 2\) of float64, expected one pickled"):
            read_npy(here, "a.npy")
        np.save(tmp_path / "a.npy", np.array(None, dtype=object), allow_pickle=True)
        with pytest.raises(ModelError, match="a.npy holds a NoneType, expected a dictionary"):
            read_npy(here, "a.npy")
        torch.save([1], tmp_path / "a.pt")
        with pytest.raises(ModelError, match="a.pt holds a list, expected a dictionary"):
            read_pt(here, "a.pt")


class TestServers:
    @pytest.fixture
    def large(self, tmp_path):
        """More than one round of requests."""
        content = {"x": np.random.default_rng(0).standard_normal(5_000_000)}
        save(tmp_path / "a.npy", content)
        server = HttpServer(tmp_path)
        yield server, Location.of(server.url), content
        server.close()

    def test_many_parts(self, large):
        server, root, content = large
        check_same(read_npy(root, "a.npy"), content)
        assert server.counter.bytes() < 1.05 * content["x"].nbytes

    def test_a_hiccup_is_asked_again(self, large):
        server, root, content = large
        with server.counter.faulty("503", times=2):
            check_same(read_npy(root, "a.npy"), content)

    @pytest.mark.parametrize(
        ("fault", "said"),
        [
            ("truncate", "a.npy cannot be read .*check the address and the network"),
            ("norange", "bytes where .* were asked for: download the file"),
            ("403", "refuses access"),
        ],
    )
    def test_faults(self, large, monkeypatch, fault, said):
        server, root, _ = large
        monkeypatch.setattr("nedx.store.location.FIRST_DELAY", 0.01)
        with server.counter.faulty(fault), pytest.raises(StoreError, match=said):
            read_npy(root, "a.npy")

    def test_missing(self, large):
        with pytest.raises(StoreError, match=r"there is no file http.*absent.npy"):
            read_npy(large[1], "absent.npy")

    def test_down(self, large, monkeypatch):
        server, root, _ = large
        monkeypatch.setattr("nedx.store.location.FIRST_DELAY", 0.01)
        server.close()
        said = r"http.*a.npy cannot be read .*check the address and the network"
        with pytest.raises(StoreError, match=said):
            read_npy(root, "a.npy")


PEAK = """
import sys
from nedx.sources.berg.pickles import read_npy
from nedx.store.location import Location
from tests.memory import peak_kib

folder = Location.of(sys.argv[1])
read_npy(folder, "small.npy")
before = peak_kib()
content = read_npy(folder, "large.npy")
print(1024 * (peak_kib() - before), sum(value.nbytes for value in content.values()))
"""


@needs_proc
@pytest.mark.parametrize(("served", "megabytes"), [(False, 200), (True, 100)])
def test_no_second_copy_is_held(tmp_path, served, megabytes):
    """Twice the size would be one copy too many."""
    save(tmp_path / "small.npy", {"x": np.zeros(3)})
    parts = {"coef_": 0.6, "components_": 0.4}
    large = {name: np.ones(int(part * megabytes * 2**17)) for name, part in parts.items()}
    save(tmp_path / "large.npy", large)
    server = HttpServer(tmp_path)
    try:
        answer = subprocess.run(
            [sys.executable, "-c", PEAK, server.url if served else str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        server.close()
    peak, size = map(int, answer.stdout.split())
    assert size > 0.99 * megabytes * 2**20
    assert peak < 1.3 * size + 2**23 * (6 if served else 1)
