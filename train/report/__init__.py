"""The page about one run or several: from the folder of each to one HTML file that needs nothing else."""
