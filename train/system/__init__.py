"""The machine: device, memory, compiler, signals, the Hub, the terminal."""
