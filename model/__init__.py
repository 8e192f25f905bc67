"""Networks, losses, optimizers and learning-rate schedules."""
