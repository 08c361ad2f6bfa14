"""The losses of local training: camera-aware proxy contrast (CAP, FedCAPR) and the KL regulariser (FedKLPR).

All are vectorised over the batch with masks and computed through ``logsumexp``, so large similarities do not overflow.
``features`` are L2-normalised embeddings [B, D], ``proxy_ids`` int64[B] the proxy of each sample (no outliers), and the
centres of the memory receive no gradient.
"""

from typing import Literal

import torch
from torch.nn import functional

from fedmpi.reid.proxies import ProxyMemory

KLFeatures = Literal["embedding", "normalized"]


def intra_camera_loss(
    features: torch.Tensor, proxy_ids: torch.Tensor, memory: ProxyMemory, *, temperature: float = 0.07
) -> torch.Tensor:
    """Tell a sample's proxy from the other proxies of its camera.

    Cross-entropy of f . M_c / temperature against the sample's own proxy, M_c the centres of its camera c; mean over
    the samples of a camera, sum over the cameras in the batch. Returns a scalar.
    """
    return _intra(_similarity(features, memory, temperature), proxy_ids, memory)


def inter_camera_loss(
    features: torch.Tensor,
    proxy_ids: torch.Tensor,
    memory: ProxyMemory,
    *,
    temperature: float = 0.07,
    negatives: int = 50,
) -> torch.Tensor:
    """Pull a sample to the proxies of its cluster in all cameras, away from the hardest others.

    Mean over the positives u (all proxies of the sample's cluster, its own included) of
    -log(exp(s_u) / (sum over positives exp(s) + sum over negatives exp(s))), s = f . m / temperature. The negatives
    are the ``negatives`` most similar proxies of other clusters (all of them when there are fewer). Mean over the
    samples of a camera, sum over the cameras in the batch. Returns a scalar.
    """
    return _inter(_similarity(features, memory, temperature), proxy_ids, memory, negatives)


def capr_loss(
    features: torch.Tensor,
    proxy_ids: torch.Tensor,
    memory: ProxyMemory,
    *,
    temperature: float = 0.07,
    intra: float = 0.6,
    inter: float = 0.7,
    negatives: int = 50,
) -> torch.Tensor:
    """Return ``intra`` x `intra_camera_loss` + ``inter`` x `inter_camera_loss` from one similarity product.

    The defaults are FedCAPR's. After ``backward()`` call ``memory.update(features, proxy_ids)``.
    """
    similarity = _similarity(features, memory, temperature)
    return intra * _intra(similarity, proxy_ids, memory) + inter * _inter(similarity, proxy_ids, memory, negatives)


def kl_divergence(
    z_reference: torch.Tensor,
    z: torch.Tensor,
    *,
    temperature: float = 1.0,
    features: KLFeatures = "embedding",
) -> torch.Tensor:
    """Return the batch mean of KL(softmax(z_reference / T) || softmax(z / T)) over the D dimensions; a scalar.

    Gradients flow through ``z`` only. The scale of the result depends on what is compared:

    - ``embedding``, the un-normalised BN-neck output with about unit variance per dimension: for jointly normal entries
      the divergence tends to (1 - cos) / T^2 for large D, so at T = 1 a weight means what FedCAPR's weight of 1 - cos
      did.
    - ``normalized``, the L2-normalised output with variance 1 / D per dimension: about (1 - cos) / (D T^2), which at
      T = 1 and D = 2048 vanishes beside the other losses; choose T near 1 / sqrt(D) with it.

    Parameters
    ----------
    z_reference, z
        float[B, D] embeddings of the same images by the reference (teacher) and by the trained model.
    temperature
        T > 0.
    features
        Whether both are L2-normalised first.

    Raises
    ------
    ValueError
        When the shapes differ, there is no row, or ``features`` is unknown.
    """
    if z_reference.shape != z.shape or z.ndim != 2 or len(z) == 0:
        message = f"embeddings of shapes {tuple(z_reference.shape)} and {tuple(z.shape)}: expected equal [B, D], B > 0"
        raise ValueError(message)
    if features not in ("embedding", "normalized"):
        message = f"features = {features!r}: expected 'embedding' or 'normalized'"
        raise ValueError(message)
    if features == "normalized":
        z_reference, z = functional.normalize(z_reference, dim=1), functional.normalize(z, dim=1)
    reference = functional.log_softmax(z_reference.detach() / temperature, dim=1)
    return functional.kl_div(
        functional.log_softmax(z / temperature, dim=1), reference, reduction="batchmean", log_target=True
    )


def _similarity(features: torch.Tensor, memory: ProxyMemory, temperature: float) -> torch.Tensor:
    """Return [B, P] similarities over temperature; never in half precision, whose step at 1 / 0.07 is 0.01."""
    with torch.autocast(features.device.type, enabled=False):
        return features.to(memory.centres.dtype) @ memory.centres.detach().T / temperature


def _intra(similarity: torch.Tensor, proxy_ids: torch.Tensor, memory: ProxyMemory) -> torch.Tensor:
    camera = memory.camera[proxy_ids]
    rivals = similarity.masked_fill(camera[:, None] != memory.camera, -torch.inf)
    own = similarity.gather(1, proxy_ids[:, None]).squeeze(1)
    return _sum_of_camera_means(rivals.logsumexp(dim=1) - own, camera)


def _inter(similarity: torch.Tensor, proxy_ids: torch.Tensor, memory: ProxyMemory, negatives: int) -> torch.Tensor:
    positive = memory.cluster[proxy_ids][:, None] == memory.cluster
    others = similarity.masked_fill(positive, -torch.inf)
    hardest = others.topk(min(negatives, others.shape[1]), dim=1).values  # padded with -inf when others are fewer
    terms = torch.cat([similarity.masked_fill(~positive, -torch.inf), hardest], dim=1)
    mean_positive = (similarity * positive).sum(dim=1) / positive.sum(dim=1)
    return _sum_of_camera_means(terms.logsumexp(dim=1) - mean_positive, memory.camera[proxy_ids])


def _sum_of_camera_means(per_sample: torch.Tensor, camera: torch.Tensor) -> torch.Tensor:
    mates = (camera[:, None] == camera).sum(dim=1)
    return (per_sample / mates).sum()
