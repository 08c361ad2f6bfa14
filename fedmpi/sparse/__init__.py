"""What travels between server and clients: flat vector and layout, masks and their coding, messages, the kernels.

No MPI here, and nothing of training: :mod:`fedmpi.comm` moves what this room makes, :mod:`fedmpi.federated` decides
what it means. The wire format is specified in docs/wire-format.md.
"""

from fedmpi.sparse.checksum import Checksum, check_values, values_checksum
from fedmpi.sparse.layout import Layout, LayoutTensor
from fedmpi.sparse.mask import Mask
from fedmpi.sparse.mask_codec import MaskMode, decode_mask, encode_mask
from fedmpi.sparse.message import (
    HEADER_SIZE,
    Flag,
    Head,
    Kind,
    MaskOutOfStepError,
    SectionSizes,
    ValueCoding,
    decode_head,
    encode_head,
    head_bound,
    peek,
)
from fedmpi.sparse.trailer import TRAILER_SIZE, cut_checksum, decode_trailer, encode_trailer, fill_checksum
from fedmpi.sparse.values import (
    LOSSLESS,
    ROUNDED,
    decode_range,
    decode_values,
    encode_kept,
    encode_range,
    encode_values,
    kept,
    rounded,
    values_bound,
)

__all__ = [
    "HEADER_SIZE", "LOSSLESS", "ROUNDED", "TRAILER_SIZE", "Checksum", "Flag", "Head", "Kind", "Layout", "LayoutTensor",
    "Mask", "MaskMode", "MaskOutOfStepError", "SectionSizes", "ValueCoding", "check_values", "cut_checksum",
    "decode_head", "decode_mask", "decode_range", "decode_trailer", "decode_values", "encode_head", "encode_kept",
    "encode_mask", "encode_range", "encode_trailer", "encode_values", "fill_checksum", "head_bound", "kept", "peek",
    "rounded", "values_bound", "values_checksum",
]  # fmt: skip
