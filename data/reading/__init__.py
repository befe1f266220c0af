"""From files, tables and addresses to encoded images with their classes."""
