"""Scores of other programs on CryoBench, as published: mean area under the FSC of each image's map."""

SOURCE = (
    "per-image FSC areas (at most 0.49) of CryoBench's own sets of 128 px as reprinted by CryoKRAQEN (CVPR 2026) and "
    "CryoHype (arXiv 2512.06332); published, not run here, and of other data: read the order, not the numbers"
)
SETS = ("IgG-1D", "IgG-RL", "Ribosembly", "Tomotwin-100", "Spike-MD")
PER_IMAGE: dict[str, tuple[float | None, ...]] = {
    "cryoDRGN": (0.351, 0.331, 0.412, 0.316, 0.340),
    "cryoDRGN-AI fixed": (0.364, 0.348, 0.372, 0.202, 0.301),
    "RECOVAR": (0.386, 0.363, 0.429, 0.258, 0.362),
    "OPUS-DSD": (None, None, None, 0.237, None),
    "CryoKRAQEN": (0.375, 0.352, 0.418, 0.335, 0.328),
    "CryoHype": (None, None, None, 0.346, None),
    "back-projection of each state": (None, None, None, 0.364, None),
}
