"""Captions of more pictures than one machine can do, on a cluster: Ray Data's, with our models in its actors."""

from .dataset import caption_dataset

__all__ = ["caption_dataset"]
