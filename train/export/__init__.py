"""A trained model as one file that needs neither this package nor its code: made, checked, and only then kept."""
