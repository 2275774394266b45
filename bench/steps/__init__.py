"""``python -m bench steps``: whole training steps of ``clead``'s methods, plain and with every lever."""
