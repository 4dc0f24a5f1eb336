import numpy as np
import pytest
import starfile

from hetmodels.analysis import fourier, fsc, oracle
from hetmodels.errors import DataError
from hetmodels.imaging.resample import resampled


def noise(size, seed, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal((size,) * 3)


def dense_fsc(a, b, index):
    """Straight from the definition, on the full transform."""
    fa, fb = (np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(x))) for x in (a, b))
    k = np.arange(len(a)) - len(a) // 2
    r = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2)
    where = index(r)
    out = []
    for shell in range((len(a) - 1) // 2 + 1):
        x, y = fa[where == shell], fb[where == shell]
        scale = np.sqrt((abs(x) ** 2).sum() * (abs(y) ** 2).sum())
        out.append((x * y.conj()).real.sum() / scale if len(x) else np.nan)
    return np.array(out)


@pytest.mark.parametrize("size", [15, 16])
def test_fsc_is_the_definition_on_the_full_transform(size):
    a = noise(size, 0)
    b = a + noise(size, 1)
    curve = fsc.fsc(a, b, 2.0)
    np.testing.assert_allclose(curve.correlation[1:], dense_fsc(a, b, np.rint)[1:], rtol=1e-12)
    k = np.rint(fourier.radius(size))
    assert curve.voxels.sum() == (k * 0 + fourier.multiplicity(size))[k <= (size - 1) // 2].sum()
    np.testing.assert_allclose(curve.frequency[1], 1 / (2.0 * size))


def test_cryobench_shells_and_area():
    size = 16
    a = noise(size, 0)
    b = a + noise(size, 1)
    ours = fsc.cryobench_curve(a, b)
    dense = dense_fsc(a, b, lambda r: np.floor(r) + 1)
    assert len(ours) == size // 2 and ours[0] == 1.0
    np.testing.assert_allclose(ours[1:], dense[1:], rtol=1e-12)
    np.testing.assert_allclose(abs(ours[1]), 1.0)  # the mean alone
    assert fsc.area(fsc.cryobench_curve(a, a), size) == pytest.approx((size // 2 - 1) / size, abs=1e-12)
    by_hand = sum(0.5 * (abs(ours[i]) + abs(ours[i + 1])) / size for i in range(size // 2 - 1))
    assert fsc.area(ours, size) == pytest.approx(by_hand, abs=1e-15)


def test_fsc_knows_scale_sign_and_empty_shells():
    a = noise(12, 0)
    np.testing.assert_allclose(fsc.fsc(a, 3 * a, 1.0).correlation, 1.0, rtol=1e-12)
    np.testing.assert_allclose(fsc.fsc(a, -a, 1.0).correlation[1:], -1.0, rtol=1e-12)
    assert np.all(fsc.fsc(a, 0 * a, 1.0).correlation[1:] == 0)


@pytest.mark.parametrize("common", [0.0, 1.0])
def test_spread_between_noisy_maps_is_the_expected_sd(common):
    def curve(i):
        shared = noise(16, 3 * i, common)
        return fsc.fsc(shared + noise(16, 3 * i + 1), shared + noise(16, 3 * i + 2), 1.0)

    curves = np.array([curve(i).correlation for i in range(200)])
    expected = fsc.Curve(np.full(8, common / (1 + common)), curve(0).voxels, 16, 1.0)
    np.testing.assert_allclose(curves.std(0)[2:], expected.sd()[2:], rtol=0.2)  # 200 draws: 5 % s.e., so 4 s.e.


def test_resolution_interpolates_and_reports_recrossings():
    voxels = np.ones(6)
    curve = fsc.Curve(np.array([1.0, 0.9, 0.6, 0.4, 0.7, 0.1]), voxels, 10, 2.0)
    crossing = curve.resolution(0.5)
    assert crossing.crossed and crossing.resolution == pytest.approx(20 / 2.5)
    assert crossing.recrossings == (pytest.approx(20 / (3 + 1 / 3)),)
    whole = fsc.Curve(np.ones(6), voxels, 10, 2.0).resolution(0.143)
    assert not whole.crossed and whole.resolution == 4.0
    none = fsc.Curve(np.array([1.0, 0.1, 0.0, 0.0, 0.0, 0.0]), voxels, 10, 2.0).resolution(0.143)
    assert not none.crossed and none.resolution == 20.0


def test_conversions_agree_with_each_other():
    ssnr = np.geomspace(1e-2, 1e3, 20)
    half = fsc.half_from_ssnr(ssnr)
    np.testing.assert_allclose(fsc.ssnr_from_half(half), ssnr, rtol=1e-9)
    np.testing.assert_allclose(fsc.reference_correlation(half), fsc.truth_from_ssnr(ssnr), rtol=1e-9)
    assert fsc.truth_from_ssnr(np.array(1 / 3)) == pytest.approx(0.5)


def test_random_phases_keep_amplitudes_and_low_shells():
    a = noise(16, 0)
    b = fsc.randomise_phases(a, 5, seed=3)
    fa, fb = fourier.forward(a), fourier.forward(b)
    np.testing.assert_allclose(abs(fb), abs(fa), rtol=1e-5)
    low = fourier.shell_index(16) < 5
    np.testing.assert_allclose(fb[low], fa[low], atol=1e-10)
    assert abs(fsc.fsc(a, b, 1.0).correlation[5:]).max() < 0.3
    np.testing.assert_array_equal(b, fsc.randomise_phases(a, 5, seed=3))


def test_mask_correction_removes_the_correlation_a_tight_mask_brings():
    size, spacing = 32, 3.0
    x = np.arange(size) - size // 2
    r = np.sqrt(x[:, None, None] ** 2 + x[None, :, None] ** 2 + x**2)
    smooth = fourier.filtered(noise(size, 9, 6.0), fourier.shell_index(size) <= 5)
    mask = (np.random.default_rng(5).random((size,) * 3) < 0.5) * (r < 15.0)  # sharp on purpose
    a, b = smooth + noise(size, 1), smooth + noise(size, 2)
    halves = fsc.half_map_fsc(a, b, spacing, mask, seed=0)
    assert halves.randomised_from == 6
    high = slice(halves.randomised_from + 3, None)
    assert halves.masked.correlation[high].mean() > 0.1
    assert abs(halves.corrected.correlation[high].mean()) < 0.05
    same = fsc.half_map_fsc(a, b, spacing, mask, seed=0)
    np.testing.assert_array_equal(same.corrected.correlation, halves.corrected.correlation)


def test_fsc_star_is_read_back(tmp_path):
    halves = fsc.half_map_fsc(noise(16, 0), noise(16, 0) + noise(16, 1), 2.0, np.ones((16,) * 3))
    fsc.write_fsc_star(tmp_path / "fsc.star", halves)
    table = starfile.read(tmp_path / "fsc.star")
    np.testing.assert_allclose(table["rlnFourierShellCorrelationCorrected"], halves.final.correlation, atol=1e-6)
    np.testing.assert_allclose(table["rlnAngstromResolution"][1:], 32.0 / np.arange(1, 8), atol=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["fsc.star"]


def test_bad_maps_are_refused_in_words():
    a = noise(8, 0)
    with pytest.raises(DataError, match="same box, found 8 and 10"):
        fsc.fsc(a, noise(10, 0), 1.0)
    with pytest.raises(DataError, match="must be finite, found 1"):
        fsc.fsc(np.where(np.arange(512).reshape(8, 8, 8) == 3, np.nan, a), a, 1.0)
    with pytest.raises(DataError, match="cube"):
        fsc.fsc(a[:4], a, 1.0)


@pytest.mark.parametrize("sizes", [(16, 12), (16, 11), (15, 12), (15, 11)])
def test_crop_samples_the_band_limited_map(sizes):
    big, small = sizes

    def wave(n):
        x = (np.arange(n) - n // 2) / n
        z, y, x = np.meshgrid(x, x, x, indexing="ij")
        return 1.5 + np.cos(2 * np.pi * (2 * x - 3 * y + z)) + np.sin(2 * np.pi * (4 * z + y))

    np.testing.assert_allclose(fourier.crop(wave(big), small), wave(small), atol=1e-12)
    np.testing.assert_allclose(resampled(wave(small)[None], big)[0], wave(big), atol=1e-12)
    with pytest.raises(DataError, match="must not exceed"):
        fourier.crop(wave(small), big)


def test_oracle_is_met_by_independent_voxels():
    """Each voxel is seen a binomial number of times through random transfer values; half maps and truth compared."""
    rng = np.random.default_rng(0)

    def gauss(variance, shape):
        return np.sqrt(variance / 2) * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))

    def corr(x, y):
        return (x * y.conj()).real.sum() / np.sqrt((abs(x) ** 2).sum() * (abs(y) ** 2).sum())

    shell = np.arange(3, 15)
    per_shell, n, sigma2, tau2 = 4000, 2000, 6.0, 8.0 / shell**2.0
    truth, joined, halves = [], [], []
    for k, t in zip(shell, tau2, strict=True):
        signal, parts = gauss(t, per_shell), []
        for _ in range(2):
            hits = rng.binomial(n // 2, 1 / (2 * k), per_shell)
            ctf2 = rng.gamma(np.maximum(hits, 1), 0.5)  # sum of squared transfer values, 1/2 each on average
            parts.append((ctf2 * signal + gauss(sigma2 * ctf2, per_shell), ctf2))
        truth.append(signal)
        halves.append([b / h for b, h in parts])
        joined.append((parts[0][0] + parts[1][0]) / (parts[0][1] + parts[1][1]))

    ssnr = oracle.map_ssnr(shell, n, np.full(len(shell), 0.5), tau2, sigma2)
    with_truth = np.array([corr(a, b) for a, b in zip(truth, joined, strict=True)])
    with_half = np.array([corr(a, b) for a, b in halves])
    assert with_truth.min() < 0.5 < 0.9 < with_truth.max()
    np.testing.assert_allclose(with_truth, fsc.truth_from_ssnr(ssnr), atol=0.05)
    np.testing.assert_allclose(with_half, fsc.half_from_ssnr(ssnr), atol=0.05)
    needed = oracle.particles_for_half(shell, np.full(len(shell), 0.5), tau2, sigma2)
    half = oracle.map_ssnr(shell, needed, np.full(len(shell), 0.5), tau2, sigma2)
    np.testing.assert_allclose(fsc.truth_from_ssnr(half), 0.5)


def test_pose_loss_is_the_mean_phase_of_gaussian_errors():
    rng = np.random.default_rng(1)
    points = rng.standard_normal((400, 3)) * 5.0  # molecule [Å]
    points -= points.mean(0)
    direction = rng.standard_normal((400, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    k, size, spacing, shift, angle = 6, 32, 2.0, 0.6, 0.03
    moved = rng.normal(0, angle, (2000, 1, 3))
    displacement = np.cross(moved, points[None]) + rng.normal(0, shift, (2000, 1, 3))
    phase = 2 * np.pi * k / (size * spacing) * (displacement * direction).sum(-1)
    gyration = np.sqrt((points**2).sum(1).mean())
    predicted = oracle.pose_loss(np.array(k), size, shift, angle, gyration, spacing)
    assert np.cos(phase).mean() == pytest.approx(float(predicted), abs=0.01)
