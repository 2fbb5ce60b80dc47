# Where a request is stamped when tracing is on, in the order of its way. hvcore/report/hops.py makes hops of the
# stamps.

cdef enum Hop:
    HOP_RECEIVED = 1             # the VSP took the packet from the ring
    HOP_WORKER_POSTED = 2        # the VSP handed the request to the IDE emulator
    HOP_WORKER_STARTED = 3       # the worker took it
    HOP_MEDIA_ASKED = 4          # the emulator asked for the media
    HOP_DISK_STARTED = 5         # the storage stack was called
    HOP_DISK_DONE = 6
    HOP_MEDIA_GIVEN = 7          # the worker saw the media's answer
    HOP_WORKER_DONE = 8          # the worker posted ATA status and interrupt
    HOP_COMPLETED = 9            # the VSP staged the completion
    HOP_ACCESS_TAKEN = 10        # trapped: the worker took a port access; the channel is the port
    HOP_ACCESS_ANSWERED = 11
    HOP_MEDIA_POSTED = 12        # the guest's controller asked for the media
