"""How much an exported file may differ from the model. Beside no import of torch, so that --help can say it at once."""

OF_A_PROBABILITY = 0.005  # and a label may differ where the model's two best classes are closer than that
OF_ACCURACY = 0.02  # that int8 may lose
