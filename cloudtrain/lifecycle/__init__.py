"""What happens to a run, whichever verb asks for it: its VM, its training, its storage, its money and its state."""
