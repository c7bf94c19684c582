"""The feature-weighted receptive-field models of NSD: a trunk, and a head that pools its maps.

St-Yves & Naselaris 2018, The feature-weighted receptive field (NeuroImage 180), in the form of
St-Yves et al. 2023 (Nature Communications 14:3329): each voxel has one receptive field of free
form on each map of the trunk, a weight for each of the 768 features, and an intercept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nedx.compute.batches import batches, checked
from nedx.compute.devices import forward_slot
from nedx.encoding.kernels import preprocessed
from nedx.errors import ModelError

if TYPE_CHECKING:
    import torch

    from nedx.backbones.gnet import GNet

POLICY = "fwrf"
"""The preprocessing that the trunk expects."""
# On a CPU a block should stay in its caches; a GPU wants work enough for all its cores.
_BLOCK_BYTES = {"cpu": 2**24}
_BLOCK_BYTES_ELSEWHERE = 2**28
# Products of fewer rows are slow, however many images there are.
_FEWEST_VOXELS = 64
# Rows left over from such groups are rounded otherwise: groups are filled up, so that blocks and
# selections do not show in results.
_GROUP = 16


@dataclass(frozen=True)
class FwrfHead:
    """What the voxels read out of the maps of the trunk.

    Attributes
    ----------
    rf : tuple of three tensors (voxel, y, x), float32
        Receptive fields on each map, before their softmax.
    w : tensor (voxel, feature), float32
        Weights of the features: those of the first map, of the second, of the third.
    b : tensor (voxel,), float32
        Intercepts, in units of the response.
    """

    rf: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    w: torch.Tensor
    b: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in (*self.rf, self.w, self.b))

    def __len__(self) -> int:
        """Return the number of voxels."""
        return len(self.b)

    def select(self, voxels: Any) -> FwrfHead:
        """Return the head of some voxels: a slice, positions or a boolean mask."""
        first, second, third = (fields[voxels] for fields in self.rf)
        return FwrfHead((first, second, third), self.w[voxels], self.b[voxels])

    def to(self, device: str | torch.device) -> FwrfHead:
        """Return the head on a device."""
        first, second, third = (fields.to(device) for fields in self.rf)
        return FwrfHead((first, second, third), self.w.to(device), self.b.to(device))


def read_out_fwrf(
    maps: Sequence[torch.Tensor], head: FwrfHead, *, voxels_per_block: int | None = None
) -> torch.Tensor:
    """Pool the maps over each voxel's receptive fields, and weight the features.

    With ``s(x) = log(1 + |x|) tanh(x)``, map ``k``, position ``p`` and feature ``f``::

        Phi[v, k, f] = sum_p softmax(rf_k[v])[p] s(F_k[f, p])
        y[v] = b[v] + sum_kf w[v, k, f] s(Phi[v, k, f])

    Only the ``Phi`` of one map and one block of voxels is ever there, so that memory does not
    grow with the number of voxels.

    Parameters
    ----------
    maps : sequence of three tensors (image, 256, y, x), float32
        What the trunk computed, on the device of the head.
    head : FwrfHead
        The voxels.
    voxels_per_block : int, optional
        Voxels taken at a time; by default as many as the device handles fast.

    Returns
    -------
    tensor (image, voxel), float32

    Raises
    ------
    ModelError
        If the maps are not those that the head reads out.
    """
    _check_maps(maps, head)
    # Positions before features: an image's product is then made as it is read, and maps that
    # lie channels last are not copied.
    features = [_squash(each.flatten(2).transpose(1, 2).contiguous()) for each in maps]
    count = len(features[0])
    if voxels_per_block is None:
        budget = _BLOCK_BYTES.get(maps[0].device.type, _BLOCK_BYTES_ELSEWHERE)
        row_bytes = 4 * max(1, count) * maps[0].shape[1]
        voxels_per_block = max(_FEWEST_VOXELS, budget // row_bytes // _GROUP * _GROUP)
    out = head.b.repeat(count, 1)
    for block in batches(len(head), voxels_per_block):
        _add_block(out[:, block], features, head.select(block))
    return out


def _add_block(out: torch.Tensor, features: Sequence[torch.Tensor], head: FwrfHead) -> None:
    """Add responses (image, voxel) to squashed features (image, position, feature)."""
    import torch

    start, filling = 0, -len(head) % _GROUP
    for fields, flat in zip(head.rf, features, strict=True):
        stop = start + flat.shape[2]
        weights = torch.nn.functional.pad(fields.flatten(1).softmax(1), (0, 0, 0, filling))
        pooled = torch.matmul(weights, flat)[:, : len(head)]
        out += _squash(pooled).mul_(head.w[:, start:stop]).sum(2)
        start = stop


def _squash(x: torch.Tensor) -> torch.Tensor:
    """Compress without losing the sign: log(1 + |x|) tanh(x).

    ``tanh(x) = 2 sigmoid(2 x) - 1`` is four times as fast in torch; near zero, where it is less
    exact, the logarithm is small.
    """
    return (2 * x).sigmoid_().mul_(2).sub_(1).mul_(x.abs().log1p_())


def _check_maps(maps: Sequence[torch.Tensor], head: FwrfHead) -> None:
    """Raise ModelError if maps and receptive fields differ in size."""
    found = [tuple(each.shape[1:]) for each in maps]
    width = head.w.shape[1] // len(head.rf)
    expected = [(width, *fields.shape[1:]) for fields in head.rf]
    if found != expected or len({len(each) for each in maps}) != 1:
        shapes = [tuple(each.shape) for each in maps]
        message = (
            f"the head reads out maps (image, {'), (image, '.join(map(_joined, expected))}), these "
            f"have shapes {shapes}: are they those of the trunk 'gnet', of images of 227 pixels?"
        )
        raise ModelError(message)


def _joined(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def load_trunk(state: Mapping[str, Any]) -> GNet:
    """Build the trunk from the published state dict.

    Parameters
    ----------
    state : mapping of str to array or tensor
        What the files hold under ``best_params``, ``enc``.

    Returns
    -------
    GNet
        On the CPU, float32, as for inference.

    Raises
    ------
    ModelError
        If a key is missing, unknown or of another shape; all are named.
    """
    import torch

    from nedx.backbones.gnet import GNet

    with torch.device("meta"):
        trunk = GNet()
    own = trunk.state_dict()
    _check_state(state, {key: tuple(tensor.shape) for key, tensor in own.items()}, "trunk")
    held = {key: _tensor(state[key]).to(tensor.dtype) for key, tensor in own.items()}
    trunk.load_state_dict(held, assign=True)
    return trunk.eval().requires_grad_(requires_grad=False)


def head_of(state: Mapping[str, Any]) -> FwrfHead:
    """Build the head of one subject and ROI from the published state dict.

    Parameters
    ----------
    state : mapping of str to array or tensor
        What the files hold under ``best_params``, ``fwrfs`` and the subject: ``rf0``, ``rf1``,
        ``rf2``, ``w`` and ``b``.

    Returns
    -------
    FwrfHead
        On the CPU, float32.

    Raises
    ------
    ModelError
        If a key is missing, unknown or of another shape; all are named.
    """
    from nedx.backbones.gnet import MAPS

    shapes = [np.shape(state[key]) for key in ("b", "w") if key in state]
    voxels = next((shape[0] for shape in shapes if shape), 0)
    expected: dict[str, tuple[int, ...]] = {
        f"rf{k}": (voxels, y, x) for k, (_, y, x) in enumerate(MAPS.values())
    }
    features = sum(channels for channels, _, _ in MAPS.values())
    expected |= {"w": (voxels, features), "b": (voxels,)}
    _check_state(state, expected, "head")
    first, second, third, w, b = (_tensor(state[key]).float() for key in expected)
    return FwrfHead((first, second, third), w, b)


def _tensor(values: Any) -> torch.Tensor:
    """Copy an array, which may be read-only, or take a tensor."""
    import torch

    if isinstance(values, torch.Tensor):
        return values.detach()
    return torch.from_numpy(np.array(values))


def _check_state(
    state: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Raise one ModelError that names every key at fault."""
    faults = []
    for key, shape in expected.items():
        if key not in state:
            faults.append(f"{key} is missing, expected {shape}")
        elif tuple(np.shape(state[key])) != shape:
            faults.append(f"{key} is {tuple(np.shape(state[key]))}, expected {shape}")
    faults += [f"{key} is not part of it" for key in state if key not in expected]
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        message = f"these are not the weights of the {what} of a fwRF model:\n{lines}"
        raise ModelError(message)


def predict(
    images: np.ndarray,
    trunk: GNet,
    head: FwrfHead,
    device: str = "cpu",
    batch_size: int = 32,
) -> np.ndarray:
    """Predict the responses of voxels to images.

    Parameters
    ----------
    images : ndarray of uint8, (image, y, x, rgb)
        Square images of any size; the policy ``"fwrf"`` resizes them.
    trunk : GNet
        From `load_trunk`; moved to the device.
    head : FwrfHead
        From `head_of`, of the same file: each ROI has a trunk of its own.
    device : str
        A torch device.
    batch_size : int
        Images in one pass.

    Returns
    -------
    ndarray of float32, (image, voxel)
        In units of the responses that the model was fitted to: z-scores within a session.

    Raises
    ------
    StimulusError
        If the images are not square or not uint8.
    ModelError
        If a prediction is not finite.
    """
    import torch

    from nedx.backbones.gnet import MAPS
    from nedx.stimuli.preprocessing import check_pixels, policy

    chosen = policy(POLICY)
    check_pixels(images.dtype, images.shape, chosen)
    trunk, head = trunk.to(device), head.to(device)
    out = np.empty((len(images), len(head)), np.float32)
    done = 0
    for batch in preprocessed(lambda part: images[part], len(images), chosen, batch_size, device):
        with forward_slot(device), torch.inference_mode():
            maps = [each for _, each in trunk.walk(batch, tuple(MAPS))]
            out[done : done + len(batch)] = read_out_fwrf(maps, head).cpu().numpy()
        done += len(batch)
    return checked(out, out.shape, np.float32, "predictions")
