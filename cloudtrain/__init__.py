"""Train a model on an Azure Spot VM and lose nothing when Azure takes the VM back."""

__version__ = "0.1.0"
