"""Sharpening of a joined map: FSC weighting, temperature factor from a Guinier fit, low-pass at the resolution."""

import dataclasses

import numpy as np

from hetmodels.analysis import fourier
from hetmodels.analysis.fsc import Curve, reference_correlation


@dataclasses.dataclass(frozen=True)
class Guinier:
    """Line through the logarithm of a map's radial amplitude, ln |V^|(s) = intercept - B s²/4.

    Attributes:
        bfactor: B [Å²], positive where amplitudes fall off; the map is sharpened by exp(+B s²/4).
        intercept: ln amplitude at s = 0.
        correlation: between the line and the data.
        shells: number of shells in the fit.
    """

    bfactor: float
    intercept: float
    correlation: float
    shells: int


def guinier_fit(volume: np.ndarray, curve: Curve, low: float = 10.0, high: float | None = None) -> Guinier | None:
    """Fit the fall-off of the signal's amplitude between two resolutions.

    The amplitude of each shell is multiplied by C_ref = sqrt(2F/(1+F)) first, so that noise does not count as signal
    (Rosenthal and Henderson 2003).

    Args:
        volume: joined map (N, N, N).
        curve: correlation of its half maps.
        low: coarsest resolution used [Å]; beyond it the fall-off is that of the solvent contrast.
        high: finest resolution used [Å]; where the curve crosses 0.143 if not given.

    Returns:
        The fit, or None if fewer than four shells lie between the two.
    """
    high = curve.resolution(0.143).resolution if high is None else high
    s = curve.frequency
    transform = fourier.forward(volume)
    power = fourier.shell_sum(np.abs(transform) ** 2, fourier.shell_index(curve.size), len(s)) / curve.voxels
    amplitude = np.sqrt(power) * reference_correlation(curve.correlation)
    use = (s >= 1.0 / low) & (s <= 1.0 / high) & (amplitude > 0)
    if use.sum() < 4:
        return None
    x, y = s[use] ** 2, np.log(amplitude[use])
    slope, intercept = np.polyfit(x, y, 1)
    return Guinier(-4.0 * float(slope), float(intercept), float(np.corrcoef(x, y)[0, 1]), int(use.sum()))


def sharpen(volume: np.ndarray, curve: Curve, bfactor: float, resolution: float | None = None) -> np.ndarray:
    """Multiply a map's transform by C_ref(s) exp(+B s²/4) and end it at the resolution with a soft edge.

    Args:
        volume: joined map (N, N, N).
        curve: correlation of its half maps.
        bfactor: B [Å²] of `guinier_fit`, or one's own; 0 leaves the FSC weighting and the low-pass.
        resolution: end of the band [Å]; where the curve crosses 0.143 if not given.

    Returns:
        Map (N, N, N).
    """
    resolution = curve.resolution(0.143).resolution if resolution is None else resolution
    s = fourier.radius(curve.size) / (curve.size * curve.spacing)
    weight = np.concatenate([reference_correlation(curve.correlation), [0.0]])
    weight = weight[np.minimum(fourier.shell_index(curve.size), len(weight) - 1)]
    gain = weight * np.exp(np.minimum(bfactor * s**2 / 4.0, 50.0))
    return fourier.filtered(volume, gain * fourier.lowpass_gain(curve.size, curve.spacing, resolution))
