import datetime

import pytest
import yaml

from nedx.catalog import catalog_json_schema
from nedx.catalog.entries import MAX_BYTES, CatalogFile, parse_catalog
from nedx.errors import CatalogError

HOME = "https://example.org/catalog.yaml"


def entry(**changes):
    plain = {
        "id": "mine",
        "version": "1.0.0",
        "title": "Mine",
        "kind": "responses",
        "source": "measured",
        "modality": "fmri",
        "urls": ["https://example.org/mine.zarr"],
        "license": "CC-BY-4.0",
    }
    return {k: v for k, v in {**plain, **changes}.items() if v is not None}


def catalog(*entries, **changes):
    raw = {"nedx_catalog": 1, "name": "lab", "entries": list(entries), **changes}
    return yaml.safe_dump(raw).encode()


def refused(data, *, remote=False, origin=HOME):
    with pytest.raises(CatalogError) as caught:
        parse_catalog(data, origin, remote=remote)
    return str(caught.value)


def test_the_example_of_the_specification_is_read():
    text = f"""
nedx_catalog: 1
name: nedx-public
updated: 2026-11-01
entries:
  - id: things-eeg2-synthetic
    version: 1.2.0
    title: Synthetic EEG responses to 26,107 THINGS images
    kind: responses
    source: synthetic
    modality: eeg
    urls:
      - gs://bucket/things-eeg2-synthetic/1.2.0.zarr
      - hf://datasets/org/things-eeg2-synthetic@{"0" * 40}/1.2.0.zarr
      - https://host/things-eeg2-synthetic/1.2.0.zarr
    zarr: {{format: 3, consolidated: true}}
    storage: {{anonymous: true}}
    dims: {{subject: 10, image: 26107, channel: 17, time: 70}}
    size: {{stored_gb: 12.4, logical_gb: 31.1}}
    fingerprint: sha256:{"a" * 64}
    license: CC-BY-4.0
    citation: [{{doi: 10.1234/abc, bibtex: "@misc{{a}}"}}]
    provenance: {{model: m, weights: "sha256:1", nedx: 0.1.0}}
    deprecated_by: null
"""
    read = parse_catalog(text.encode(), HOME, remote=True)
    assert read.updated == datetime.date(2026, 11, 1)
    assert read.entries[0].dims == {"subject": 10, "image": 26107, "channel": 17, "time": 70}
    assert read.entries[0].storage.anonymous is True
    assert read.entries[0].reference == "things-eeg2-synthetic@1.2.0"


def test_every_fault_is_in_one_message():
    message = refused(
        catalog(
            entry(id="-bad", version=1.2, kind="model2"),
            entry(id="ok", licence="MIT", license=None),
            entry(id="third", storage={"anonymus": True}, dims={"image": -1}),
            colour="red",
        )
    )
    for part in (
        "entries[0] (-bad).id",
        'put it in quotes: "1.2"',
        "entries[0] (-bad).kind",
        "did you mean 'license'?",
        "entries[1] (ok).license: Field required",
        "storage.anonymus: this word is not known; did you mean 'anonymous'?",
        "dims.image",
        "colour: this word is not known",
    ):
        assert part in message, message
    assert "(8 faults)" in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"urls": None}, "give one of urls, generator and external"),
        ({"generator": "simulation"}, "give one of urls, generator and external"),
        ({"urls": None, "generator": "os:system"}, "is not a generator"),
        ({"modality": None}, "needs a modality"),
        ({"version": "v1"}, "version"),
        ({"fingerprint": "md5:00"}, "fingerprint"),
        ({"citation": [{}]}, "give doi, bibtex or text"),
        ({"citation": [{"doi": "https://doi.org/10.1/a"}]}, "doi"),
        ({"deprecated_by": "a b"}, "deprecated_by"),
        ({"title": "red \x1b[31m"}, "control characters"),
        ({"provenance": {"a": {"b": 1}}}, "provenance"),
    ],
)
def test_a_faulty_word_is_named(changes, said):
    assert said in refused(catalog(entry(**changes)))


def test_one_id_and_version_is_there_once():
    assert "named twice: mine@1.0.0" in refused(catalog(entry(), entry()))


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['true']",
        "nedx_catalog: 1\nname: &a [*a]",
        "nedx_catalog: 1\na0: &a0 [1, 1]\n"
        + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)),
        "nedx_catalog: 1\nname: a\nname: b",
        "nedx_catalog: 1\nname: " + "[" * 5000,
        "just text",
        "",
        "\x00",
    ],
)
def test_what_is_not_plain_data_is_refused(text):
    refused(text.encode())


def test_text_that_is_not_utf8_is_refused():
    refused(b"\xff\xfe\xfa")


def test_a_large_file_is_refused_before_it_is_parsed():
    assert "larger than" in refused(b"[" * (MAX_BYTES + 1))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("/etc/data.zarr", "local path"),
        ("data.zarr", "local path"),
        ("~/data.zarr", "local path"),
        ("C:\\data.zarr", "local path"),
        ("file:///etc/data.zarr", "local file"),
        ("FILE:///etc/data.zarr", "local file"),
        ("local://etc/data.zarr", "local file"),
        ("memory://data.zarr", "local file"),
        ("simplecache::https://a.org/x.zarr", "chains protocols"),
        ("https://a.org/x.zip::file:///etc", "chains protocols"),
        ("ftp://a.org/x.zarr", "uses ftp://"),
        ("reference://x", "uses reference://"),
        ("http://a.org/x.zarr", "uses http://"),
        ("https://user:word@a.org/x.zarr", "credentials"),
        ("https://127.0.0.1/x.zarr", "own network"),
        ("https://2130706433/x.zarr", "own network"),
        ("https://0x7f.1/x.zarr", "own network"),
        ("https://[::1]/x.zarr", "own network"),
        ("https://169.254.169.254/latest", "own network"),
        ("https://localhost:9000/x.zarr", "own network"),
        ("https://printer.local/x.zarr", "own network"),
        ("s3://bucket:9000/x.zarr", "endpoint"),
        ("s3://bucket/x.zarr?endpoint_url=http://a", "endpoint"),
    ],
)
def test_a_catalog_from_the_network_may_not_name(url, said):
    message = refused(catalog(entry(urls=[url])), remote=True)
    assert said in message
    assert "entries[0] (mine).urls" in message


@pytest.mark.parametrize(
    "url",
    [
        "https://a.org/x.zarr",
        "https://8.8.8.8/x.zarr",
        "gs://bucket/x.zarr",
        "s3://bucket/x.zarr",
        "hf://datasets/org/name@0123/x.zarr",
    ],
)
def test_a_catalog_from_the_network_may_name(url):
    assert parse_catalog(catalog(entry(urls=[url])), HOME, remote=True).entries[0].urls == (url,)


def test_plain_http_is_for_the_host_of_the_catalog_only():
    data = catalog(entry(urls=["http://127.0.0.1:8000/x.zarr"]))
    assert parse_catalog(data, "http://127.0.0.1:8000/c.yaml", remote=True).entries
    assert "uses http://" in refused(data, remote=True, origin="http://127.0.0.1:8001/c.yaml")


def test_code_and_storage_options_from_the_network_are_refused_together():
    message = refused(
        catalog(
            entry(urls=None, generator="simulation"),
            entry(id="b", storage_options={"endpoint_url": "https://evil.org"}),
            entry(id="c", storage={"endpoint_url": "https://evil.org"}),
            entry(id="d", urls=["file:///etc/passwd"]),
        ),
        remote=True,
    )
    assert "entries[0] (mine).generator: a catalog from the network may not name code" in message
    assert "entries[1] (b).storage_options" in message
    assert "entries[2] (c).storage.endpoint_url" in message
    assert "entries[3] (d).urls" in message


def test_a_local_catalog_may_name_generators_and_paths():
    data = catalog(
        entry(urls=None, generator="simulation"), entry(id="b", urls=["x.zarr", "memory://x"])
    )
    assert len(parse_catalog(data, "here.yaml", remote=False).entries) == 2


def test_requester_pays_is_spelled_for_the_protocols_that_know_it():
    data = catalog(entry(storage={"requester_pays": True}))
    storage = parse_catalog(data, HOME, remote=True).entries[0].storage
    assert storage.options("s3") == {"requester_pays": True}
    assert storage.options("https") == {}


def test_the_json_schema_names_every_word_and_forbids_others():
    schema = catalog_json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(CatalogFile.model_fields)
    assert schema["$defs"]["Entry"]["additionalProperties"] is False
    assert {"id", "version", "title", "kind", "source", "license"} == set(
        schema["$defs"]["Entry"]["required"]
    )
