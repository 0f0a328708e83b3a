"""From a question and image embeddings to text."""
