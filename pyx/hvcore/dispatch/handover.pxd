# Memory that the host shares with one worker process: one block for each IDE channel, through which the VSP hands a
# request to the IDE emulator and the emulator asks for the media. Strict alternation, so that two sequence words are
# all the synchronisation: the host writes its half and then `posted`; the worker writes its half and then
# `answered` = the posted number it answers. One command at a time per channel, as on the cable.
#
# The host reads every field of the worker's half once, into private memory, and believes none of it unchecked.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #ifndef HV_HANDOVER
    #define HV_HANDOVER
    #define HV_HANDOVER_SEGMENTS 72            /* 256 KiB that starts anywhere in a page, and some */
    #define HV_HANDOVER_PIO 65536
    typedef struct { uint32_t address, bytes; } hv_segment;
    typedef struct {                            /* written by the host */
        uint32_t posted, operation;
        uint32_t kind, mode, drive, sectors;
        uint64_t lba, trace_id;
        int32_t media_status;
        uint32_t segment_count;
        hv_segment segments[HV_HANDOVER_SEGMENTS];
    } hv_handover_request;
    typedef struct {                            /* written by the worker */
        uint32_t answered, operation;
        uint32_t kind, drive, sectors, dma;
        uint64_t lba;
        uint32_t ata_status, ata_error;
        uint32_t segment_count, reserved;
        uint64_t port_accesses, bytes_copied;
        hv_segment segments[HV_HANDOVER_SEGMENTS];
    } hv_handover_answer;
    typedef struct {
        hv_handover_request request;
        uint8_t pad1[2048 - sizeof(hv_handover_request)];
        hv_handover_answer answer;
        uint8_t pad2[2048 - sizeof(hv_handover_answer)];
        uint8_t pio[2 * HV_HANDOVER_PIO];      /* the drives' PIO buffers */
    } hv_handover_channel;
    typedef struct {
        uint32_t worker_sleep;                  /* 1: the worker sleeps on this word as a futex */
        uint32_t pad1[15];
        uint32_t host_sleep;                    /* 1: the host sleeps on the worker's doorbell */
        uint32_t pad2[15];
        uint32_t stop;                          /* the host ends the worker's loop */
        uint32_t pad3[15];
        uint8_t pad4[4096 - 192];
        uint8_t trace[65536 - 4096];           /* the worker's trace ring */
        hv_handover_channel channels[2];
    } hv_handover;
    _Static_assert(offsetof(hv_handover, channels) == 65536, "hand-over memory");
    _Static_assert(sizeof(hv_handover_channel) == 4096 + 2 * HV_HANDOVER_PIO, "hand-over memory");
    #endif
    """
    enum:
        HANDOVER_SEGMENTS "HV_HANDOVER_SEGMENTS"
        HANDOVER_PIO "HV_HANDOVER_PIO"
    ctypedef struct Segment "hv_segment":
        uint32_t address
        uint32_t bytes
    ctypedef struct HandOverRequest "hv_handover_request":
        uint32_t posted
        uint32_t operation
        uint32_t kind
        uint32_t mode
        uint32_t drive
        uint32_t sectors
        uint64_t lba
        uint64_t trace_id
        int32_t media_status
        uint32_t segment_count
        Segment[72] segments
    ctypedef struct HandOverAnswer "hv_handover_answer":
        uint32_t answered
        uint32_t operation
        uint32_t kind
        uint32_t drive
        uint32_t sectors
        uint32_t dma
        uint64_t lba
        uint32_t ata_status
        uint32_t ata_error
        uint32_t segment_count
        uint64_t port_accesses
        uint64_t bytes_copied
        Segment[72] segments
    ctypedef struct HandOverChannel "hv_handover_channel":
        HandOverRequest request
        HandOverAnswer answer
        uint8_t[131072] pio
    ctypedef struct HandOver "hv_handover":
        uint32_t worker_sleep
        uint32_t host_sleep
        uint32_t stop
        uint8_t[61440] trace
        HandOverChannel[2] channels
    enum:
        HANDOVER_ANSWER_HEADER "offsetof(hv_handover_answer, segments)"
        HANDOVER_BYTES "sizeof(hv_handover)"
        HANDOVER_TRACE_BYTES "(65536 - 4096)"

cdef enum HandOverOperation:
    HANDOVER_COMMAND = 1         # host: run this request
    HANDOVER_MEDIA_DONE = 2      # host: media_status
    HANDOVER_MEDIA = 3           # worker: kind, drive, lba, sectors; dma: segments, else the PIO buffer
    HANDOVER_RESULT = 4          # worker: ATA status and error, what it cost
