"""The hand-written loop, train/loop.py, and the rooms around it."""
