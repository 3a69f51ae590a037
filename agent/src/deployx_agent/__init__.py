"""The DeployX agent: runs signed work orders on one device and journals what it did."""

__version__ = "0.1.0"
