"""``python -m clead.evaluate RUN_OR_CHECKPOINT…``: how accurate trained models are when someone tries to fool them."""
