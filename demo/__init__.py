"""`make demo`: the switch at work on two real guests, step by step, with the evidence kept."""
