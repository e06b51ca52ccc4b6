"""Mock stars: the physics, the errors, the gaps and the edges of the real catalogue, without a network."""
