"""Data that are generated here, or taken from installed packages, without download. Each module that is a row of
SOURCES has `dataset()`, which describes its data; they are generated when they are prepared."""
