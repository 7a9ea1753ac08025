"""Log-mel frames of recordings: the energy in mel bands, in windows of 25 ms every 10 ms.

`rate` is the number of samples a second (`data.sample_rate`).
"""

import functools
import math

import numpy as np

from transformer.errors import UserError

FLOOR = 1e-6  # added to the energy (audio in [-1, 1]); digital silence becomes ln(FLOOR) = -13.8
TOGETHER = 2**14  # frames that are transformed at once: a recording of any length takes memory for these


def window(rate: int) -> int:
    """Samples of a frame: 25 ms."""
    return rate // 40


def hop(rate: int) -> int:
    """Samples from frame to frame: 10 ms."""
    return rate // 100


def points(rate: int) -> int:
    """Points of the transform, a power of two: at least twice the window, so that the lines are at most 20 Hz apart
    (15.6 at 8 and 16 kHz) and each narrow band at low frequencies still has one."""
    return 2 << (window(rate) - 1).bit_length()


def frame_count(samples: np.ndarray, rate: int) -> np.ndarray:
    """Frames of recordings of this many samples: enough to cover every sample, at least one."""
    return np.maximum(1, -(-(samples - window(rate)) // hop(rate)) + 1)


def log_mel(audio: np.ndarray, mels: int, rate: int) -> np.ndarray:
    """Frames [T, mels] float32 of a recording [samples] of 16-bit values: ln(FLOOR + energy in each mel band), with
    periodic Hann windows, zero padding at the end, the power spectrum, and triangular bands."""
    width, step = window(rate), hop(rate)
    count = int(frame_count(np.array(len(audio)), rate))
    padded = np.zeros(width + (count - 1) * step)
    padded[: len(audio)] = audio / 2**15
    windows = np.ndarray((count, width), padded.dtype, padded, strides=(step * padded.itemsize, padded.itemsize))
    frames = np.empty((count, mels), np.float32)
    for start in range(0, count, TOGETHER):
        power = np.abs(np.fft.rfft(windows[start : start + TOGETHER] * hann(width), points(rate)))
        power *= power
        energy = power @ filterbank(mels, rate)
        energy += FLOOR
        frames[start : start + TOGETHER] = np.log(energy, out=energy)
    return frames


@functools.cache
def hann(width: int) -> np.ndarray:
    """The periodic Hann window of this width."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(width) / width)


@functools.cache
def filterbank(mels: int, rate: int) -> np.ndarray:
    """Weights [points // 2 + 1, mels] of triangular bands of height 1, evenly spaced in mel from 0 to rate / 2. HTK's
    formula, mel = 2595 log10(1 + Hz / 700); band i rises from edge i to i + 1 and falls to i + 2. UserError: a band is
    so narrow that it has no frequency of the transform."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), mels + 2) / 2595) - 1)
    hertz = np.arange(points(rate) // 2 + 1)[:, None] * rate / points(rate)
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    weights = np.maximum(0, np.minimum(rising, falling))
    if not weights.any(axis=0).all():
        raise UserError(f"model.channels={mels} mel bands are too narrow for recordings at {rate} Hz: lower it to 80.")
    return weights


def normalised(frames: np.ndarray) -> np.ndarray:
    """Frames [T, mels] with mean 0 and deviation 1 over all frames and bands. UserError: all are equal (silence)."""
    wide = frames.astype(np.float64)
    wide -= wide.mean()
    deviation = math.sqrt((wide * wide).mean())
    if not deviation > 0:
        raise UserError("a recording is silent: take it out, or record it again")
    wide /= deviation
    return wide.astype(np.float32)
