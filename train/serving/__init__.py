"""An HTTP server for a trained model."""
