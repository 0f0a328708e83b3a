"""A bundle on disk: its manifest, its graphs as sessions, its checksums."""
