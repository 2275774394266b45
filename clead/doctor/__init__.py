"""``python -m clead.doctor``: what is wrong with an installation, or with a step whose numbers were not finite."""
