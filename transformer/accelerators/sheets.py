"""The vendors' data sheets: SHEETS, by the names of the accelerators."""

import re
from typing import NamedTuple


class Sheet(NamedTuple):
    """One accelerator. FLOPs are those of dense matrix products a second; bytes are decimal."""

    flops: float  # in bfloat16
    single: float  # in float32 at JAX's default precision: TF32 on GPUs, rounded to bfloat16 on TPUs
    memory: float  # bytes
    bandwidth: float  # bytes a second of that memory
    link: float  # bytes a second that a device sends to its neighbours, of its machine or of its torus, on all links


# a100: SXM, 80 GB (NVIDIA A100 data sheet). h100, h200: SXM, half of the FLOPs that the H100 and H200 data sheets give
# with sparsity; an H200 has an H100's FLOPs and links, with 141 GB at 4.8 TB/s. TPUs: of one chip (Google Cloud's pages
# on each). Its links send half of the bidirectional bandwidth: a v5e's 4 ports with 400 GB/s both ways send 200 GB/s. A
# v4 has 6 links of 50 GB/s (Jouppi et al. 2023, arXiv 2304.01433).
SHEETS = {
    "a100": Sheet(312e12, 156e12, 80e9, 2.04e12, 300e9),
    "h100": Sheet(989e12, 494e12, 80e9, 3.35e12, 450e9),
    "h200": Sheet(989e12, 494e12, 141e9, 4.8e12, 450e9),
    "v4": Sheet(275e12, 275e12, 32e9, 1.23e12, 300e9),
    "v5e": Sheet(197e12, 197e12, 16e9, 0.82e12, 200e9),
    "v5p": Sheet(459e12, 459e12, 95e9, 2.77e12, 600e9),
    "v6e": Sheet(918e12, 918e12, 32e9, 1.64e12, 400e9),
}
# JAX's names. Variants with lower clocks (H100 PCIe and NVL, GH200) are not listed.
DEVICE_KINDS = {
    r"NVIDIA A100.*": "a100",
    r"NVIDIA H100 80GB HBM3": "h100",
    r"NVIDIA H200": "h200",
    r"TPU v4": "v4",
    r"TPU v5 ?(lite|e)": "v5e",
    r"TPU v5p?": "v5p",
    r"TPU v6 ?(lite|e)": "v6e",
}


def peak(sheet: Sheet, dtype: str) -> float:
    """FLOPs a second of products of this type."""
    return sheet.flops if dtype in ("bfloat16", "float16") else sheet.single


def sheet_of(device_kind: str) -> Sheet | None:
    """The sheet of a `jax.Device.device_kind`; None for a device that is not listed."""
    return next((SHEETS[name] for pattern, name in DEVICE_KINDS.items() if re.fullmatch(pattern, device_kind)), None)


def known_flops(device_kind: str, dtype: str) -> float | None:
    """The peak for `jax.Device.device_kind`, FLOPs a second; None for a device that is not listed."""
    sheet = sheet_of(device_kind)
    return None if sheet is None else peak(sheet, dtype)
