"""TinyGPT-V on the CPU: load a bundle, show it an image, ask. Needs numpy, onnxruntime, pillow and tokenizers only."""

from .answer import Answer, AnswerStream, EncodedImage, Timings
from .errors import ArgumentError, BundleError, ContextOverflowError, ExportError, ImageError, TinyGPTVError
from .image import ImageSource
from .model import TinyGPTV

__all__ = [
    "Answer",
    "AnswerStream",
    "ArgumentError",
    "BundleError",
    "ContextOverflowError",
    "EncodedImage",
    "ExportError",
    "ImageError",
    "ImageSource",
    "Timings",
    "TinyGPTV",
    "TinyGPTVError",
]
