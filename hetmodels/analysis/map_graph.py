"""Representative particles of a run, joined by how far apart their maps are, and ways from one to another.

Distances between latents mean nothing: another coordinate of the same conformations changes them. Distances between
maps, in nats per image (see `map_space`), belong to the conformations, and so do the shortest ways along them: through
particles that were seen, never across empty space (the graph traversal of Zhong, Bepler, Berger and Davis 2021, Nature
Methods 18, with edges measured on the maps). Groups of maps by average linkage are those of its landscape analysis.
"""

import dataclasses

import numpy as np
import scipy.cluster.hierarchy
import scipy.cluster.vq
import scipy.sparse.csgraph
import scipy.spatial.distance

from hetmodels.analysis.map_space import MapSpace
from hetmodels.errors import UsageError
from hetmodels.posterior import Posterior

COUNT, SIZE = 100, 32  # representatives, and the box in which their maps are compared
NEIGHBOURS, DEGREE = 10, 5  # nearest of each that may be joined, and edges of each on average
EXACT = 20  # latents up to which maps that are linear in z are not rendered one by one


@dataclasses.dataclass(frozen=True, eq=False)
class MapGraph:
    """Representatives and their maps.

    Attributes:
        rows: the particles, (M,).
        latents: their latents, (M, dims).
        weights: share of the particles that each stands for, (M,).
        nearest: representative of each particle of the run, (N,).
        distances: between their maps, root of twice the nats per image, (M, M).
    """

    rows: np.ndarray
    latents: np.ndarray
    weights: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray

    @classmethod
    def of(cls, posterior: Posterior, count: int = COUNT, seed: int = 0) -> "MapGraph":
        """Representatives by k-means, each moved to the particle nearest to it.

        Args:
            posterior: of a family with continuous latents.
            count: representatives at most.
            seed: of the start of k-means.

        Raises:
            UsageError: if there are no continuous latents.
        """
        latents = np.asarray(posterior.local["mean"], float) if posterior.local else np.empty((0, 0))
        if not latents.shape[1]:
            raise UsageError("map graph: the run has no continuous latents whose maps could be joined.")
        rows = representatives(latents, count, seed)
        scaled = _scaled(latents)
        nearest = scipy.spatial.cKDTree(scaled[rows]).query(scaled)[1]
        weights = np.bincount(nearest, minlength=len(rows)) / len(latents)
        return cls(rows, latents[rows], weights, nearest, map_distances(posterior, latents[rows]))

    def edges(self) -> np.ndarray:
        """Lengths of the edges, (M, M), 0 where there is none: near neighbours, and what it takes to join all."""
        count = len(self.rows)
        near = np.argsort(self.distances, axis=1)[:, 1 : NEIGHBOURS + 1]
        joined = np.zeros((count, count), bool)
        joined[np.arange(count)[:, None], near] = True
        joined |= joined.T
        lengths = np.sort(self.distances[np.triu(joined)])
        joined &= self.distances <= lengths[min(len(lengths) - 1, count * DEGREE // 2)]
        tree = scipy.sparse.csgraph.minimum_spanning_tree(np.maximum(self.distances, 1e-12)).toarray() > 0
        joined |= tree | tree.T
        return np.where(joined, np.maximum(self.distances, 1e-12), 0.0)

    def path(self, first: int, last: int) -> np.ndarray:
        """Representatives on the shortest way between two of them (Dijkstra), numbers from 0."""
        before = scipy.sparse.csgraph.dijkstra(self.edges(), indices=first, return_predecessors=True)[1]
        way = [last]
        while way[-1] != first:
            way.append(int(before[way[-1]]))
        return np.array(way[::-1])

    def at(self, latent: np.ndarray) -> int:
        """The representative whose latents are nearest to a point, (dims,)."""
        return int((((self.latents - latent) / self.latents.std(0)) ** 2).sum(1).argmin())

    def ends(self) -> tuple[int, int]:
        """The two representatives that are farthest apart along the edges, of those that stand for enough particles."""
        enough = np.flatnonzero(self.weights >= np.quantile(self.weights, 0.25))
        far = scipy.sparse.csgraph.dijkstra(self.edges(), indices=enough)[:, enough]
        first, last = np.unravel_index(far.argmax(), far.shape)
        return int(enough[first]), int(enough[last])

    def groups(self, count: int) -> np.ndarray:
        """Group of each representative, from 0, by average linkage of the maps' distances, (M,)."""
        pairs = scipy.spatial.distance.squareform(self.distances, checks=False)
        tree = scipy.cluster.hierarchy.linkage(pairs, "average")
        return scipy.cluster.hierarchy.fcluster(tree, count, "maxclust") - 1

    def components(self, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of the representatives along the principal components of their maps, weighted by particles.

        Returns:
            (M, count) in the unit of the distances, and the share of the variance that each explains, (count,).
        """
        square = self.distances**2
        middle = square @ self.weights
        gram = -0.5 * (square - middle[:, None] - middle + self.weights @ middle)
        root = np.sqrt(self.weights)
        values, vectors = np.linalg.eigh(root[:, None] * gram * root)
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        kept = slice(0, min(count, len(values)))
        found = vectors[:, kept] * np.sqrt(values[kept]) / np.maximum(root, 1e-12)[:, None]
        return found, values[kept] / max(values.sum(), 1e-300)


def representatives(latents: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Rows of particles spread over the latents: nearest to the centres of k-means, (M,), M <= count."""
    scaled = _scaled(latents)
    distinct = len(np.unique(scaled, axis=0))
    centres, _ = scipy.cluster.vq.kmeans2(scaled, min(count, distinct), minit="++", rng=seed, missing="warn")
    return np.unique(scipy.spatial.cKDTree(scaled).query(centres)[1])


def _scaled(latents: np.ndarray) -> np.ndarray:
    spread = latents.std(0)
    return (latents - latents.mean(0)) / np.where(spread > 0, spread, 1)


def map_distances(posterior: Posterior, latents: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Distances between the maps at some latents, (M, M): root of twice the expected nats per image.

    Maps that are linear in z are compared by their constant metric, others are rendered.
    """
    space = MapSpace.of(posterior, size)
    if hasattr(posterior.family, "latent_covariance") and latents.shape[1] <= EXACT:
        values, vectors = np.linalg.eigh(space.metric(latents.mean(0)))
        placed = latents @ vectors * np.sqrt(np.maximum(values, 0))
        return scipy.spatial.distance.cdist(placed, placed)
    vectors = np.stack([space.at(z) for z in latents])
    return np.sqrt(2) * scipy.spatial.distance.cdist(vectors, vectors)
