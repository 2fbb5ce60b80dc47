"""The hypervisor: owns partitions, guest memory and doorbells. It knows of no device and no disk."""
