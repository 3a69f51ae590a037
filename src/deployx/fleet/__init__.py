"""Where work runs: devices, groups, and how a machine becomes a device."""
