"""The structure of the project is tested too: layers, places, sizes."""
