"""Figures of a run, drawn from the files in its folder only.

``drawing`` has them all. What tables need of ``files``, ``table`` and ``style`` comes without matplotlib, whose import
takes half a second.
"""
