"""Training: what a rank is given, batches, objective, schedule, the loop, checkpoints, and the rank's process."""
