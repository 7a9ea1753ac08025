"""Data that is generated here, or taken from installed packages: nothing of it is downloaded.

Each module that is a row of SOURCES has `dataset()`, which describes its data; they are made when they are prepared.
"""
