"""DeployX: run work on fleets of devices, with every planned run accounted for."""

__version__ = "0.1.0"
