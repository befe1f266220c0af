"""A trained model at work: image bytes in, probabilities out."""
