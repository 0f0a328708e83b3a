"""A window to ask about pictures, on PySide6; it uses nothing but the public API of ``tinygptv.runtime``."""
