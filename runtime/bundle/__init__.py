"""A bundle as it lies on the disk: its manifest, its graphs as sessions, its checksums."""
