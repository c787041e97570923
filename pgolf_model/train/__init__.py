"""The training loop: schedule, optimizers, averages, rounded weights, clock, progress."""
