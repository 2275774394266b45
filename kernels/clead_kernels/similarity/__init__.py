"""Similarity of rows: the whole matrix, or the k most similar rows of a bank."""

from .api import similarity, similarity_topk

__all__ = ["similarity", "similarity_topk"]
