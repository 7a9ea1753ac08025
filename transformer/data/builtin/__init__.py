"""Data that is generated here, or taken from installed packages: nothing of it is downloaded."""
