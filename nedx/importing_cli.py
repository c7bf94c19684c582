"""``nedx import FORMAT ROOT OUT``: one subcommand for each source of `nedx.sources.importing`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from nedx.sources.importing import SOURCES, Argument, import_source
from nedx.store.location import Location


def add_import(verbs: Any, say: Callable[[str], None]) -> None:
    """Add ``import`` and its formats to the verbs of the command line.

    Parameters
    ----------
    verbs : subparsers of argparse
        Where verbs are added.
    say : callable
        Called with the line that tells where the store is.
    """
    formats = verbs.add_parser("import", help="turn published recordings into a store")
    kinds = formats.add_subparsers(metavar="FORMAT", required=True)
    for name, source in SOURCES.items():
        kind = kinds.add_parser(name, help=source.summary, description=source.summary)
        kind.add_argument("root", help="the folder, bucket or file that was published")
        kind.add_argument("place", help="where to write the store; begun before, it goes on")
        for argument in source.arguments:
            _add(kind, argument)
        kind.add_argument("--anonymous", action="store_true", help="read without credentials")
        kind.add_argument("--overwrite", action="store_true", help="replace what is there")
        kind.add_argument("--quiet", action="store_true", help="no progress bar")
        kind.set_defaults(command=_importer(name, say))


def _add(kind: argparse.ArgumentParser, argument: Argument) -> None:
    flag = f"--{argument.name.replace('_', '-')}"
    if argument.type is bool:
        kind.add_argument(flag, dest=argument.name, action="store_true", help=argument.help)
        return
    kind.add_argument(
        flag,
        dest=argument.name,
        type=argument.type,
        choices=argument.choices or None,
        required=argument.required,
        help=argument.help,
    )


def _importer(name: str, say: Callable[[str], None]) -> Callable[[argparse.Namespace], None]:
    def run(given: argparse.Namespace) -> None:
        values = {one.name: getattr(given, one.name) for one in SOURCES[name].arguments}
        place = import_source(
            name,
            Location.of(given.root, anonymous=given.anonymous or None),
            given.place,
            overwrite=given.overwrite,
            progress=not given.quiet,
            **{key: value for key, value in values.items() if value not in (None, False)},
        )
        say(f"written to {place.url}")

    return run
