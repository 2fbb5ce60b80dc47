# The executor of the synthetic path: the VSP has the storage stack move the data between the file and the guest's
# pages.

from hvcore.dispatch.pool cimport PoolJob
from hvcore.storage.vsp cimport VspRequest

ctypedef struct MediaJob:        # one per VspRequest, as its executor_data
    PoolJob job
    VspRequest *request

# A VspExecutor; context is the Pool.

cdef void synthetic_execute(void *context, VspRequest *request) noexcept nogil
