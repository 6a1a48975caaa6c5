"""SpRAy: what kinds of reasons there are among many explanations, by spectral clustering of their relevance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from .extras import extra

Array = np.ndarray[Any, Any]

#: Into how many clusters explanations are put if nothing else is said.
CLUSTERS = (2, 3, 4, 5, 6)
#: How many eigenvectors are kept at most.
DIMENSIONS = 32
PERPLEXITY = 30.0


@dataclass(frozen=True)
class Spray:
    """Embeddings and clusters of some explanations.

    Attributes
    ----------
    eigenvalues : numpy.ndarray
        The smallest of the Laplacian, ascending, of shape ``(dimensions,)``: from 0 to 2, as many zeros as the graph
        has parts. A gap after the k-th speaks for k clusters.
    spectral : numpy.ndarray
        Their eigenvectors, of shape ``(rows, dimensions)``.
    tsne : numpy.ndarray
        t-SNE of ``spectral`` with rows of length 1, of shape ``(rows, 2)``.
    clusters : dict
        Number k of clusters to the cluster of each row, of shape ``(rows,)``, by k-means of the first k columns of
        ``spectral``, with rows of length 1.
    """

    eigenvalues: Array
    spectral: Array
    tsne: Array
    clusters: dict[int, Array]


def fewest(clusters: Sequence[int]) -> int:
    """Return how many rows are needed for some numbers of clusters: one more than the largest, for k-means to choose.

    Raises
    ------
    InputError
        If there is none, or one below 2.
    """
    if not clusters or min(clusters) < 2 or len(set(clusters)) < len(clusters):
        raise InputError(f"got clusters={tuple(clusters)}, expected different numbers from 2, such as {CLUSTERS}")
    return max(clusters) + 1


def spray(matrix: Any, clusters: Sequence[int] = CLUSTERS, neighbours: int = 10, seed: int = 0) -> Spray:
    r"""Embed and cluster explanations by their relevance.

    Rows are divided by their :math:`\sum_j |R_j|`, so that it does not matter how large a logit was. :math:`A` is the
    symmetric graph of nearest neighbours in Euclidean distance, :math:`D` its degrees, and the embedding are the
    eigenvectors of :math:`L = 1 - D^{-1/2} A D^{-1/2}` with the smallest eigenvalues. K clusters are those of k-means
    in the first k of them, rows scaled to length 1 (Ng et al. 2001, *On spectral clustering*, steps 2 to 5; Lapuschkin
    et al. 2019, *Unmasking Clever Hans predictors*, Methods). It is done by CoRelAy. Distances are those of all pairs:
    memory grows with the square of the rows, to 2 GB for 10,000.

    Parameters
    ----------
    matrix : array-like
        Of shape ``(rows, values)``: relevance of pixels, of heads, of the units of a latent, of each explanation.
    clusters : sequence of int, optional
        Into how many clusters.
    neighbours : int, optional
        How many nearest neighbours a row has in the graph; fewer if there are not so many.
    seed : int, optional
        What is random begins with it: the same seed gives the same result.

    Returns
    -------
    Spray
        Eigenvalues, embeddings and clusters.

    Raises
    ------
    InputError
        If it is no matrix of finite numbers, has not more rows than the largest number of clusters, or CoRelAy is not
        installed.

    Examples
    --------
    >>> import numpy as np
    >>> from zennit_attn.data import spray
    >>> here, there = np.eye(2)[[0] * 8 + [1] * 8].reshape(2, 8, 2)
    >>> noise = np.random.default_rng(0).random((16, 2)) / 10
    >>> found = spray(np.concatenate([here, there]) + noise, clusters=[2], neighbours=3)
    >>> len(set(found.clusters[2][:8])), len(set(found.clusters[2][8:]))
    (1, 1)
    """
    least = fewest(clusters)
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) < least:
        raise InputError(
            f"got an array of shape {matrix.shape} for clusters={tuple(clusters)}, expected (rows, values) with "
            f"at least {least} rows"
        )
    if not np.isfinite(matrix).all():
        raise InputError("got a matrix with NaN or infinite values, expected finite ones: leave those rows out")
    if neighbours < 1:
        raise InputError(f"got neighbours={neighbours}, expected at least 1")
    spectral, affinity, embedding, clustering = (
        extra(f"corelay.{name}", "SpRAy", "virelay")
        for name in ("pipeline.spectral", "processor.affinity", "processor.embedding", "processor.clustering")
    )
    sums = np.abs(matrix).sum(1, keepdims=True)
    dimensions = min(max(DIMENSIONS, *clusters), len(matrix) - 1)
    start = np.random.default_rng(seed).random(len(matrix))
    embed = spectral.SpectralEmbedding(
        affinity=affinity.SparseKNN(n_neighbors=neighbours, symmetric=True),
        # the largest of 1 - L, not those of largest magnitude, of which some could be the largest of L
        embedding=embedding.EigenDecomposition(
            n_eigval=dimensions, which="LA", normalize=False, kwargs={"v0": start}, is_output=True
        ),
    )
    values, vectors = embed(matrix / np.where(sums > 0, sums, 1))
    order = np.argsort(values)
    values, vectors = values[order], vectors[:, order]
    tsne = embedding.TSNEEmbedding(perplexity=min(PERPLEXITY, (len(matrix) - 1) / 3), kwargs={"random_state": seed})
    options = {"random_state": seed, "n_init": 10}
    found = {count: clustering.KMeans(n_clusters=count, kwargs=options)(unit(vectors[:, :count])) for count in clusters}
    return Spray(values, vectors, tsne(unit(vectors)), found)


def unit(vectors: Array) -> Array:
    """Return rows of length 1."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))
