"""From an image file to image embeddings."""
