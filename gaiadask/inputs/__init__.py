"""From column values to network inputs and back: statistics, scaling, null masks, the transform."""
