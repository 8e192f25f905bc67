"""What is trained, and how a step changes it: networks, losses, optimizers, schedules."""
