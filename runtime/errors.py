"""Every error this package raises on purpose, so that a host program can catch one class."""


class TinyGPTVError(Exception):
    """Base of all errors that tinygptv raises on purpose; its text is one line meant for the user."""


class BundleError(TinyGPTVError):
    """A bundle is missing, damaged, incomplete or of another format version."""


class ImageError(TinyGPTVError):
    """An image cannot be read, is truncated, or is larger than the limit."""


class ContextOverflowError(TinyGPTVError):
    """Prompt and new tokens together do not fit in the model's context."""


class CancelledError(TinyGPTVError):
    """A generation was cancelled while it could not yet give an answer."""


class ExportError(TinyGPTVError):
    """The published files cannot be turned into a bundle; names the file and key that stopped it."""
