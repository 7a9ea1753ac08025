"""Machines that need not be here: their data sheets, their compilers, and what a compiled program will do on them."""
