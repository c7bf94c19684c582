"""The command ``nedx``: the verbs that make sense in a shell.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 an error of nedx or a store
that is not sound, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from rich.console import Console
from rich.table import Table
from rich.text import Text

import nedx
from nedx.errors import NedxError, NedxWarning
from nedx.fitting_cli import add_decode, add_fit
from nedx.importing_cli import add_import

_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
out = Console(**_PLAIN, width=None if sys.stdout.isatty() else 120)
err = Console(**_PLAIN, stderr=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit code.
    """
    arguments = _parser().parse_args(argv)
    # It logs the traceback of what becomes one message here.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning(warnings.showwarning)
        try:
            return int(arguments.command(arguments) or 0)
        except NedxError as error:
            err.print(f"error: {error}", style="red")
            return 1
        except KeyboardInterrupt as interruption:
            # What was interrupted says there how to go on.
            notes = getattr(interruption, "__notes__", None)
            err.print(
                "interrupted"
                + "".join(f"; {note}" for note in notes or ["what was finished is kept"])
            )
            return 130


def _show_warning(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Show the warnings of nedx as one line, others as usual."""

    def show(message: Any, category: type[Warning], *rest: Any, **options: Any) -> None:
        if issubclass(category, NedxWarning):
            err.print(f"warning: {message}", style="yellow")
        else:
            otherwise(message, category, *rest, **options)

    return show


def _list(arguments: argparse.Namespace) -> None:
    words = {name: getattr(arguments, name) for name in ("kind", "modality", "source", "dataset")}
    table = nedx.list(
        **words, subject=arguments.subject, roi=arguments.roi, catalog=arguments.catalog
    )
    if arguments.text:
        wanted = {
            entry.reference for entry in nedx.search(arguments.text, catalog=arguments.catalog)
        }
        table = type(table)([entry for entry in table if entry.reference in wanted])
    if arguments.json:
        _print_json([entry.model_dump(mode="json", exclude_none=True) for entry in table])
    else:
        out.print(repr(table))


def _info(arguments: argparse.Namespace) -> None:
    from nedx.by_name import read
    from nedx.catalog.resolving import resolve
    from nedx.errors import UnknownIdError
    from nedx.repr import as_rich, describe

    try:
        entry = None if _is_path(arguments.place) else resolve(arguments.place)
    except UnknownIdError:
        if not Path(arguments.place).exists():
            raise
        entry = None
    if entry is not None:
        if arguments.json:
            _print_json(entry.model_dump(mode="json", exclude_none=True))
        else:
            out.print(repr(nedx.describe(arguments.place)))
        return
    opened = read(arguments.place, **_reach(arguments))
    if not isinstance(opened, xr.Dataset | xr.DataTree):
        said = opened.recipe.model_dump(mode="json", exclude_none=True)
        _print_json(said) if arguments.json else out.print(repr(opened))
    elif arguments.json:
        _print_json(dict(describe(opened).rows))
    else:
        out.print(as_rich(describe(opened)))


def _encode(arguments: argparse.Namespace) -> None:
    images = nedx.open_images(arguments.images, **_given(arguments, "size", "fit"))
    place = nedx.synthesize(
        images,
        arguments.model,
        arguments.place,
        device=arguments.device,
        overwrite=arguments.overwrite,
        resume=arguments.resume,
        progress=not arguments.quiet,
        **_selection(arguments),
    )
    err.print(f"written to {place.url}")


def _pull(arguments: argparse.Namespace) -> None:
    path = nedx.pull(
        arguments.place,
        into=arguments.into,
        progress=not arguments.quiet,
        subject=arguments.subject,
        roi=arguments.roi,
    )
    out.print(str(path))


def _verify(arguments: argparse.Namespace) -> int:
    report = nedx.verify(arguments.place, sample=arguments.sample, **_reach(arguments))
    return _report(report, as_json=arguments.json)


def _report(report: Any, *, as_json: bool) -> int:
    """Print a report with ``ok``; return the exit code that it means."""
    if as_json:
        _print_json(dataclasses.asdict(report) | {"ok": report.ok})
    else:
        out.print(str(report))
    return 0 if report.ok else 1


def _validate(arguments: argparse.Namespace) -> None:
    from nedx.by_name import read

    opened = read(arguments.place, **_reach(arguments))
    if not isinstance(opened, xr.Dataset | xr.DataTree):
        raise NedxError(f"{arguments.place} is a model; validate checks data")
    nedx.validate(opened)
    err.print(f"{arguments.place} obeys the schema")


def _cite(arguments: argparse.Namespace) -> None:
    citation = nedx.cite(arguments.place)
    if arguments.bibtex and not citation.bibtex:
        raise NedxError(f"no BibTeX is known for it. Type: nedx cite {arguments.place}")
    out.print(citation.bibtex if arguments.bibtex else str(citation))


def _doctor(arguments: argparse.Namespace) -> None:
    from nedx.doctor import examine

    found = examine()
    if arguments.json:
        _print_json(found)
        return
    for heading, facts in found.items():
        out.print(Text(heading, style="bold"))
        table = Table(box=None, show_header=False, padding=(0, 2))
        for name, value in facts.items():
            table.add_row(Text(name), Text(str(value)))
        out.print(table)


def _demo(arguments: argparse.Namespace) -> None:
    from nedx.demo import run_demo

    run_demo(arguments.into, console=out)


def _synth_init(arguments: argparse.Namespace) -> None:
    from nedx.synthesis import init

    init(
        arguments.images,
        arguments.model,
        arguments.place,
        overwrite=arguments.overwrite,
        device=arguments.device,
        block=arguments.block,
        recipe=arguments.recipe,
        open_options=_given(arguments, "size", "fit"),
        **_given(arguments, "precision", "batch_size"),
        **_selection(arguments),
    )
    err.print(f"planned; now type: nedx synth run {arguments.place}")


def _synth_run(arguments: argparse.Namespace) -> None:
    from nedx.synthesis import run

    found = run(
        arguments.place,
        part=arguments.part,
        client=arguments.address,
        workers=arguments.workers,
        progress=not arguments.quiet,
    )
    err.print(str(found))


def _synth_status(arguments: argparse.Namespace) -> None:
    from nedx.synthesis import status

    found = status(arguments.place)
    if arguments.json:
        _print_json(dataclasses.asdict(found))
    else:
        out.print(str(found))


def _synth_finalize(arguments: argparse.Namespace) -> None:
    from nedx.synthesis import finalize

    finalize(arguments.place)
    err.print(f"{arguments.place} is complete")


def _synth_verify(arguments: argparse.Namespace) -> int:
    from nedx.synthesis import verify

    report = verify(arguments.place, sample=arguments.sample, recompute=arguments.recompute)
    return _report(report, as_json=arguments.json)


def _print_json(value: Any) -> None:
    out.print(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def _is_path(place: str) -> bool:
    return "/" in place or place.endswith(".zarr")


def _reach(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"anonymous": True} if arguments.anonymous else {}


def _selection(arguments: argparse.Namespace) -> dict[str, Any]:
    return _given(arguments, "subject", "roi", "channel", "time")


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name)}


def _share(text: str) -> float:
    """Read ``1%`` or ``0.01``."""
    number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no fraction; type 1% or 0.01")
    return number


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _window(text: str) -> tuple[float | None, float | None] | float:
    """Read ``0.1:0.3`` (seconds) as a window, ``0.1`` as the nearest sample."""
    if ":" not in text:
        return float(text)
    start, stop = text.split(":")
    return (float(start) if start else None, float(stop) if stop else None)


def _part(text: str) -> str:
    """Check ``i/n``: part i of n, counted from 1."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; type i/n, for example 3/20")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nedx", description="Neural responses to images: find, compute, stream, verify."
    )
    parser.add_argument("--version", action="version", version=f"nedx {nedx.__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    verb = _verb(verbs, "list", _list, "list what the catalogs name")
    verb.add_argument("text", nargs="?", help="only entries that hold these words")
    for option in ("kind", "modality", "source", "dataset", "subject", "roi", "catalog"):
        verb.add_argument(f"--{option}")
    _json(verb)

    verb = _verb(verbs, "info", _info, "describe an id, or what a store holds")
    _place(verb)
    _json(verb)

    verb = _verb(verbs, "encode", _encode, "write the responses of a model to a folder of images")
    _encoding(verb)
    verb.add_argument("--resume", action="store_true", help="go on with an interrupted write")
    _quiet(verb)

    add_fit(verbs, err.print)
    add_decode(verbs, err.print)

    _add_synth(verbs)

    verb = _verb(verbs, "pull", _pull, "copy a store to the local cache, with resume")
    verb.add_argument("place", help="an id, a URL, or things-eeg2")
    verb.add_argument("--subject", type=_words, help="of what is published: for example 1,2")
    verb.add_argument("--roi", type=_words, help="of a published model: for example V1,FFA-1")
    verb.add_argument("--into", type=Path, help="another folder than the cache")
    _quiet(verb)

    add_import(verbs, err.print)

    verb = _verb(verbs, "verify", _verify, "check the hashes of a store")
    _place(verb)
    verb.add_argument("--sample", type=_share, default=1.0, help="part to check, such as 1%%")
    _json(verb)

    verb = _verb(verbs, "validate", _validate, "check a store against the schema")
    _place(verb)

    verb = _verb(verbs, "cite", _cite, "say how to cite an id or a store")
    verb.add_argument("place", help="an id, a path or a URL")
    verb.add_argument("--bibtex", action="store_true")

    verb = _verb(verbs, "doctor", _doctor, "show versions, devices, folders and extras")
    _json(verb)

    verb = _verb(verbs, "demo", _demo, "encode a folder of images, stream a piece, plot it")
    verb.add_argument("--into", type=Path, default=Path("demo"))
    return parser


def _add_synth(verbs: Any) -> None:
    synth = verbs.add_parser("synth", help="synthesize in batches that can be resumed")
    steps = synth.add_subparsers(metavar="STEP", required=True)

    step = _verb(steps, "init", _synth_init, "plan a synthesis; computes nothing")
    _encoding(step)
    step.add_argument("--recipe", help="what the images are: nsd-73k, imagenet-val, things, a file")
    step.add_argument("--precision", choices=("float32", "bf16", "fp16"))
    step.add_argument("--batch-size", type=int, help="images in one forward pass")
    step.add_argument("--block", type=int, help="images that one task writes")

    step = _verb(steps, "run", _synth_run, "write the blocks that are not done yet")
    step.add_argument("place")
    step.add_argument("--part", type=_part, help="part i of n, for job arrays: 3/20")
    step.add_argument("--address", help="the scheduler of a dask cluster")
    step.add_argument("--workers", type=int, help="processes on this machine")
    _quiet(step)

    step = _verb(steps, "status", _synth_status, "say how much is done")
    step.add_argument("place")
    _json(step)

    step = _verb(steps, "finalize", _synth_finalize, "check that all is done, and seal the store")
    step.add_argument("place")

    step = _verb(steps, "verify", _synth_verify, "check hashes, and compute some blocks again")
    step.add_argument("place")
    step.add_argument("--sample", type=_share, default=1.0, help="part to check, such as 1%%")
    step.add_argument("--recompute", type=_share, default=0.0, help="part to compute again")
    _json(step)


def _verb(
    verbs: Any, name: str, command: Callable[[argparse.Namespace], int | None], text: str
) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    verb.set_defaults(command=command)
    return verb


def _place(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("place", help="an id, a path or a URL")
    verb.add_argument("--anonymous", action="store_true", help="read without credentials")


def _encoding(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("images", help="a folder of images, or another source that nedx can open")
    verb.add_argument("model", help="an id, a path or a URL of a model")
    verb.add_argument("place", help="where to write the store")
    verb.add_argument("--subject", type=_words, help="for example 1,2")
    verb.add_argument("--roi", type=_words, help="for example V1,FFA-1")
    verb.add_argument("--channel", type=_words, help="for example Oz,visual")
    verb.add_argument("--time", type=_window, help="seconds: 0.1:0.3, or 0.1")
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    verb.add_argument("--size", type=int, help="pixels of a side, for images that differ in size")
    verb.add_argument("--fit", choices=("error", "crop", "resize", "pad"), help="default: error")
    verb.add_argument("--overwrite", action="store_true", help="replace what is there")


def _json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print JSON")


def _quiet(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--quiet", action="store_true", help="no progress bar")


if __name__ == "__main__":
    sys.exit(main())
