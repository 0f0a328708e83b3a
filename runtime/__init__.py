"""Small vision-language models on the CPU: load a bundle, show it an image, ask.

Needs numpy, onnxruntime, pillow and tokenizers, and filelock, protobuf and tqdm, which come with those.
"""

from .answer import Answer, AnswerStream, Timings
from .astream import AsyncAnswerStream
from .cancel import Cancellation
from .chat import Chat
from .errors import (
    ArgumentError,
    BundleError,
    CancellationError,
    ContextOverflowError,
    ExportError,
    ImageError,
    MemoryShortageError,
    TinyGPTVError,
)
from .language.logprobs import TokenLogprob
from .language.sampling import PUBLISHED_DEMO, LogitsProcessor, Sampling
from .model import TinyGPTV
from .options import AnswerKeywords, AnswerOptions
from .vision.encoded import EncodedImage
from .vision.image import ImageSource

__all__ = [
    "PUBLISHED_DEMO",
    "Answer",
    "AnswerKeywords",
    "AnswerOptions",
    "AnswerStream",
    "ArgumentError",
    "AsyncAnswerStream",
    "BundleError",
    "Cancellation",
    "CancellationError",
    "Chat",
    "ContextOverflowError",
    "EncodedImage",
    "ExportError",
    "ImageError",
    "ImageSource",
    "LogitsProcessor",
    "MemoryShortageError",
    "Sampling",
    "Timings",
    "TinyGPTV",
    "TinyGPTVError",
    "TokenLogprob",
]
