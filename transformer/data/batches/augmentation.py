"""Random augmentation of training examples, a pure function of (seed, epoch, example)."""

import functools

import numpy as np

SHIFT = 14  # an image is shifted by at most max(1, side // 14) pixels: 2 for MNIST's 28, 1 for 8


SPEED = (0.9, 1.1)
LEAD = 10  # at most a tenth of a second of silence comes before a recording
NOISE = (15.0, 40.0)  # signal-to-noise ratio in decibels
MASKED = 5  # at most a fifth of the bands, and of the frames, is masked


def uniforms(seed: int, epoch: int, examples: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [B, count]: a hash of (seed, epoch, example, index), so that it does not
    matter which examples share a batch."""
    state = _mixed(_mixed(_of_epoch(seed, epoch), examples)[:, None], np.arange(count))
    state >>= np.uint64(11)
    return state * 2.0**-53


@functools.lru_cache(maxsize=4)
def _of_epoch(seed: int, epoch: int) -> np.ndarray:
    return _mixed(np.array([seed % 2**64], np.uint64), epoch)


def _mixed(state: np.ndarray, number: np.ndarray | int) -> np.ndarray:
    """The output of SplitMix64 (Steele, Lea and Flood, 2014) `number` + 1 steps after `state`."""
    steps = np.atleast_1d(number).astype(np.uint64)
    steps += np.uint64(1)
    steps *= np.uint64(0x9E3779B97F4A7C15)  # overflow is meant
    x = state + steps
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x


def shifted_images(images: np.ndarray, seed: int, epoch: int, examples: np.ndarray) -> np.ndarray:
    """Each image of [B, H, W, C] shifted vertically and horizontally by a few pixels, filled with zeros."""
    count, height, width, _ = images.shape
    most = max(1, max(height, width) // SHIFT)
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    top, left = (uniforms(seed, epoch, examples, 2) * (2 * most + 1)).astype(int).T
    rows, columns = top[:, None] + np.arange(height), left[:, None] + np.arange(width)
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def longest_augmented(samples: np.ndarray, rate: int) -> np.ndarray:
    """The most samples that recordings of this many samples, `rate` a second, have after `augmented_audio`."""
    return (samples / SPEED[0]).astype(np.int64) + 1 + rate // LEAD


def augmented_audio(audio: np.ndarray, rate: int, seed: int, epoch: int, example: int) -> np.ndarray:
    """A recording [T] of `rate` samples a second, resampled to another speed by linear interpolation, after a pause and
    with white noise: float64, of another length."""
    longest = int(longest_augmented(np.array(len(audio)), rate))
    draws = uniforms(seed, epoch, np.array([example]), 7 + longest)[0]  # 3 to 6 are used by `masked_frames`
    speed = SPEED[0] + (SPEED[1] - SPEED[0]) * draws[0]
    places = np.arange(0, len(audio) - 1 + 1e-9, speed)
    played = np.interp(places, np.arange(len(audio)), audio.astype(np.float64))
    louder = 10 ** ((NOISE[0] + (NOISE[1] - NOISE[0]) * draws[2]) / 20)
    amplitude = np.sqrt(3 * np.mean(played**2)) / louder  # noise in [-a, a) has the variance a^2 / 3
    pause = int(draws[1] * (rate // LEAD + 1))
    noisy = 2 * draws[7 : 7 + pause + len(played)] - 1
    noisy *= amplitude
    noisy[pause:] += played
    return noisy


def masked_frames(frames: np.ndarray, seed: int, epoch: int, example: int) -> np.ndarray:
    """Frames [T, mels] with one range of frames and one of bands set to 0, their mean (SpecAugment, Park et al.,
    2019)."""
    draws = uniforms(seed, epoch, np.array([example]), 7)[0, 3:]  # the first three are used by `augmented_audio`
    masked = frames.copy()
    for axis, (size, place) in enumerate(draws.reshape(2, 2)):
        width = int(size * (frames.shape[axis] // MASKED + 1))
        start = int(place * (frames.shape[axis] - width + 1))
        masked[(slice(None),) * axis + (slice(start, start + width),)] = 0
    return masked
