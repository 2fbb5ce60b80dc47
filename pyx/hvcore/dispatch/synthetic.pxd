# The executor of the synthetic path: the VSP has the storage stack move the data between the file and the guest's
# pages.

from hvcore.dispatch.pool cimport Pool, PoolJob, PoolSource
from hvcore.storage.vsp cimport VspRequest, VspUnit

ctypedef struct MediaDisk:       # one disk's way to the storage stack; the context of a VspUnit
    Pool *pool
    PoolSource source

ctypedef struct MediaJob:        # one per VspRequest, as its executor_data
    PoolJob job
    VspRequest *request

# Does request.plan's media access for the given disk, at once or in the pool; then vsp_finish.
cdef void media_execute(MediaDisk *disk, VspRequest *request) noexcept nogil
# A VspExecutor; the unit's context is a MediaDisk.
cdef void synthetic_execute(VspUnit *unit, VspRequest *request) noexcept nogil
