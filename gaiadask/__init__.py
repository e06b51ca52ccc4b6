"""gaiadask: the Gaia catalogue as something small, complete and usable."""
