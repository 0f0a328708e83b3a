"""Compares a bundle with a second implementation, in torch: same files, same photos and texts."""
