"""Networks, their checkpoints, and the state in which they are measured."""
