"""What is measured once a card is there, section by section: each gives rows, the most wanted first."""
