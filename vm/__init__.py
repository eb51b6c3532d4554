"""The launcher of virtual machines: what a VM is, QEMU's command line for it, and the life of its process.

This package knows nothing of switches: a NIC is a MAC address and the path of a vhost-user socket.
"""
