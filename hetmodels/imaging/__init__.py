"""Image formation: Fourier pixels, slices, rotations, contrast transfer, noise, the likelihood."""
