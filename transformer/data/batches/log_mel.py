"""Log-mel frames of recordings: the energy in mel bands, in windows of 25 ms every 10 ms."""

import functools

import numpy as np

from transformer.data.sources.recordings import RATE
from transformer.errors import UserError

WINDOW = RATE // 40  # samples of a frame: 25 ms
HOP = RATE // 100  # samples from frame to frame: 10 ms
FFT = 512  # points; more than WINDOW, so that each narrow band at low frequencies still has a frequency
FLOOR = 1e-6  # added to the energy (audio in [-1, 1]); digital silence becomes ln(FLOOR) = -13.8


def frame_count(samples: np.ndarray) -> np.ndarray:
    """Frames of recordings of this many samples: enough to cover every sample, at least one."""
    return np.maximum(1, -(-(samples - WINDOW) // HOP) + 1)


def log_mel(audio: np.ndarray, mels: int) -> np.ndarray:
    """Frames [T, mels] float32 of a recording [samples] of 16-bit values: ln(FLOOR + energy in each mel band), with
    periodic Hann windows, zero padding at the end, the power spectrum, and triangular bands."""
    count = int(frame_count(np.array(len(audio))))
    padded = np.zeros(WINDOW + (count - 1) * HOP)
    padded[: len(audio)] = audio / 2**15
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(windows * hann, FFT)) ** 2
    return np.log(FLOOR + power @ filterbank(mels)).astype(np.float32)


@functools.cache
def filterbank(mels: int) -> np.ndarray:
    """Weights [FFT // 2 + 1, mels] of triangular bands of height 1, evenly spaced in mel from 0 to RATE / 2. HTK's
    formula, mel = 2595 log10(1 + Hz / 700); band i rises from edge i to i + 1 and falls to i + 2. UserError: a band is
    so narrow that it has no frequency of the transform."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), mels + 2) / 2595) - 1)
    hertz = np.arange(FFT // 2 + 1)[:, None] * RATE / FFT
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    weights = np.maximum(0, np.minimum(rising, falling))
    if not weights.any(axis=0).all():
        raise UserError(f"model.channels={mels} mel bands are too narrow for recordings at {RATE} Hz: lower it to 80.")
    return weights


def normalised(frames: np.ndarray) -> np.ndarray:
    """Frames [T, mels] with mean 0 and deviation 1 over all frames and bands. UserError: all are equal (silence)."""
    wide = frames.astype(np.float64)
    deviation = wide.std()
    if not deviation > 0:
        raise UserError("a recording is silent: take it out, or record it again")
    return ((wide - wide.mean()) / deviation).astype(np.float32)
