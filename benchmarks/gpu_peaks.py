"""What the makers of GPUs state for products in bf16, without sparsity: operations a second."""

from __future__ import annotations

# The first name that occurs in the device's counts.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}


def peak_of(device: str) -> float | None:
    """Of a device by its name, `NVIDIA H200`; None where none is known, and of a part of a device."""
    words = f" {device.replace('-', ' ')} "
    if " MIG " in words or " GRID " in words:
        return None
    return next((peak for name, peak in PEAKS.items() if f" {name} " in words), None)
