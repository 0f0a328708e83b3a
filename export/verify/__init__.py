"""Holding a bundle against a second implementation, in torch: same files, same photos and texts."""
