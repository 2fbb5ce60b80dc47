# What a VHDX is asked.

from hvcore.disk.ops cimport DiskOps

cdef DiskOps OPS
