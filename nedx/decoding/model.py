"""The neural decoder: networks that make embeddings of responses, for each subject its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import xarray as xr

from nedx.compute.references import ModelRef
from nedx.decoding.recipe import DecoderRecipe, Member
from nedx.decoding.storing import LOADER, write_decoder
from nedx.encoding.network_storing import State, hash_states, read_state
from nedx.encoding.storing import hash_variables
from nedx.errors import ModelError, close_matches
from nedx.selection import Subjects, chosen_subjects
from nedx.store.location import Location
from nedx.store.models import keep


class NeuralDecoder:
    """Makes embeddings of responses: what `EEGDecoder` has learnt, and `decode` applies.

    Parameters
    ----------
    recipe : DecoderRecipe
        What it takes, what it gives, where it comes from.
    states : mapping of str to dict of str to ndarray
        The tensors of each network that the recipe names.
    known : Dataset, optional
        ``known_image`` and ``known_partition (known_image)``, the images that it has seen.

    Raises
    ------
    ModelError
        If networks are missing.
    """

    def __init__(
        self,
        recipe: DecoderRecipe,
        states: Mapping[str, State],
        known: xr.Dataset | None = None,
    ):
        missing = [name for name in recipe.networks if name not in states]
        if missing:
            raise ModelError(f"the networks {', '.join(missing)} have no weights")
        self.recipe = recipe
        self.known = xr.Dataset() if known is None else known
        self._states: Mapping[str, State] | None = states
        self._ref: ModelRef | None = None
        self._root = self

    @classmethod
    def _opened(cls, recipe: DecoderRecipe, ref: ModelRef, known: xr.Dataset) -> NeuralDecoder:
        """Make a decoder of what lies in a store."""
        self = cls.__new__(cls)
        self.recipe, self.known = recipe, known
        self._states, self._ref, self._root = None, ref, self
        return self

    @classmethod
    def from_checkpoint(cls, path: str | Path, recipe: DecoderRecipe) -> NeuralDecoder:
        """Make a decoder of a checkpoint of an original repository; nothing is executed.

        Parameters
        ----------
        path : path
            As `nedx.decoding.networks.checkpoints.load_checkpoint` reads it.
        recipe : DecoderRecipe
            What the file does not say: the network, the channels in their order, the times, and
            the units and normalisation of the responses.

        Returns
        -------
        NeuralDecoder
            Which decodes anybody, and says of no image that it has seen it.

        Raises
        ------
        ModelError
            If the weights are of another network, or the recipe is of another shape.
        """
        from nedx.decoding.networks.checkpoints import load_checkpoint
        from nedx.decoding.standardized import Standardized

        network = recipe.network
        said, shape = (
            (len(recipe.channels), len(recipe.times)),
            (network.n_channels, network.n_times),
        )
        if said != shape or len(recipe.networks) != 1:
            raise ModelError(
                f"the recipe names {said[0]} channels, {said[1]} times and {len(recipe.networks)} "
                f"networks; one network of {shape[0]} channels and {shape[1]} times is read"
            )
        module = Standardized(network)
        module.network = load_checkpoint(path, network)
        state = {name: value.numpy() for name, value in module.state_dict().items()}
        return cls(recipe, {recipe.networks[0]: state})

    @property
    def subjects(self) -> tuple[str, ...]:
        """Labels of the subjects that it decodes; empty where it decodes anybody."""
        return tuple(self.recipe.members)

    @property
    def weights_sha256(self) -> str:
        """Of the whole model, whatever is selected of it."""
        return self.ref.sha256

    @property
    def ref(self) -> ModelRef:
        """What a graph carries; a model that lies in no store yet is written to the cache."""
        root = self._root
        if root._ref is None:
            assert root._states is not None
            recipe, sha256 = root.recipe.model_dump_json(), hash_states(root._states)
            seen = hash_variables({"": root.known}, tuple(sorted(map(str, root.known.variables))))
            place = keep(f"{recipe}{sha256}{seen}", root.to_zarr)
            root._ref = ModelRef(LOADER, place, recipe, sha256)
        return root._ref

    def member(self, subject: str | None) -> Member:
        """Return which network decodes a subject.

        Parameters
        ----------
        subject : str or None
            Label; None where the responses do not say whose they are.

        Raises
        ------
        ModelError
            If none does.
        """
        members = self.recipe.members
        if subject in members:
            return members[subject]
        if len(self.recipe.networks) == 1 and (
            subject is None or not members or self.recipe.mode == "joint"
        ):
            alone = len(members) == 1 and subject is None
            return (
                next(iter(members.values())) if alone else Member(network=self.recipe.networks[0])
            )
        whose = "of nobody in particular" if subject is None else f"of {subject!r}"
        raise ModelError(
            f"the responses are {whose}, the decoder was fitted to {', '.join(members)} "
            f"({self.recipe.mode}): {close_matches(subject, members)} Select these subjects, or "
            "fit with mode='joint'"
        )

    def sel(self, *, subject: Subjects | None = None) -> NeuralDecoder:
        """Select subjects; the networks of the others are never read.

        Parameters
        ----------
        subject : str, int or list of these, optional

        Returns
        -------
        NeuralDecoder

        Raises
        ------
        SelectionError
            If one is not there.
        """
        if subject is None:
            return self
        members = self.recipe.members
        labels = chosen_subjects(subject, members)
        kept = {label: members[label] for label in labels}
        networks = tuple(dict.fromkeys(member.network for member in kept.values()))
        chosen = copy.copy(self)
        chosen.recipe = self.recipe.model_copy(update={"members": kept, "networks": networks})
        return chosen

    def state(self, network: str) -> State:
        """Return the tensors of one network by name."""
        states = self._root._states
        return states[network] if states is not None else read_state(self.ref, network)

    def to_zarr(self, place: str | Path | Location) -> Location:
        """Write the model to a Zarr store; `nedx.load_model` opens it.

        Parameters
        ----------
        place : path, URL or Location
            Must not exist.

        Returns
        -------
        Location

        Raises
        ------
        StoreExistsError
            If something is there; nothing is changed.
        """
        states = {name: self.state(name) for name in self.recipe.networks}
        return write_decoder(place, self.recipe, states, self.known)

    def __repr__(self) -> str:
        lines = [f"<nedx.NeuralDecoder {self.recipe.model_id!r} version {self.recipe.version}>"]
        lines += [f"    {label + ':':<12} {text}" for label, text in self._summary().items()]
        return "\n".join(lines)

    def _summary(self) -> dict[str, str]:
        recipe = self.recipe
        window = f"{recipe.times[0]:g} to {recipe.times[-1]:g} s"
        if recipe.sampling_frequency is not None:
            window += f" at {recipe.sampling_frequency:g} Hz"
        return {
            "network": f"{recipe.network.name}, {recipe.network.n_outputs:,} features",
            "takes": f"{len(recipe.channels)} channels, {window}, {recipe.units}",
            "subjects": f"{', '.join(recipe.members) or 'anybody'} ({recipe.mode})",
            "target": recipe.target or "not said",
            "chosen by": recipe.selection,
            "trained on": recipe.training_data or recipe.dataset or "not said",
            "source": recipe.training_source or "not said",
            "licence": recipe.license or "not said",
        }
