"""The stages of a run: one module a stage, the table that lists them, and the engine that runs them."""
