"""Losses with the signatures of the libraries people already use, on the fused operators: one module per library.

Change the import, keep the call: ``from lightly.loss import NTXentLoss`` becomes
``from clead_kernels.compat.lightly import NTXentLoss``. None of the libraries is needed or imported. Every class takes
one more argument, ``impl``, by keyword. README.md here says what differs.
"""
