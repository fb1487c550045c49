"""Branch and bound on the input box, for networks with few inputs."""
