"""Captioning on a cluster, for more pictures than one machine can process: Ray Data with our models in its actors."""

from .dataset import caption_dataset

__all__ = ["caption_dataset"]
