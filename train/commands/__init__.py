"""What `plainloop` runs, one module per command."""
