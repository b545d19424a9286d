// SPDX-License-Identifier: BSD-3-Clause
/*
 * What the C parts know of vfio-user messages (specification, "Header" and "VFIO_USER_REGION_*"),
 * all in host byte order, and how they take one from a socket with the descriptors that belong to
 * it.  The numbers are those of pyvfio/wire; a test compares them.
 */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct pyvfio_header {
    uint16_t id;
    uint16_t command;
    uint32_t size;
    uint32_t flags;
    uint32_t error;
};

/* REGION_READ, REGION_WRITE and their replies */
struct pyvfio_range {
    uint64_t offset;
    uint32_t region;
    uint32_t count;
};

/* One write of REGION_WRITE_MULTI */
struct pyvfio_write {
    struct pyvfio_range range;
    uint8_t data[8];
};

#define PYVFIO_REGION_READ 9
#define PYVFIO_REGION_WRITE 10
#define PYVFIO_REGION_WRITE_MULTI 15

#define PYVFIO_REQUEST_SIZE (sizeof(struct pyvfio_header) + sizeof(struct pyvfio_range))

#define PYVFIO_COMMAND 0
#define PYVFIO_REPLY 1
#define PYVFIO_NO_REPLY 0x10
#define PYVFIO_ERROR 0x20

/* How a call ended. */
enum pyvfio_status {
    PYVFIO_DONE,
    PYVFIO_UNSENT, /* the socket did not take all of it; `error` says why, where it should have */
    PYVFIO_LATE,   /* nothing has come in time, or a signal came */
    PYVFIO_OTHER,  /* what came is not what is usual */
    PYVFIO_ENDED,  /* the peer has closed the connection */
    PYVFIO_FAILED, /* `error` says why */

    /* Of a client */
    PYVFIO_BUSY,    /* others have the socket; nothing was done */
    PYVFIO_CROWDED, /* all was done; others wait, and are to be told */

    PYVFIO_PAUSE, /* go on, unless there is a reason not to */

    /* Of a server */
    PYVFIO_READ,   /* a register is to be read: `access` */
    PYVFIO_WRITE,  /* a register is to be written: `access` and `value` */
    PYVFIO_POSTED, /* `posted` writes of registers, as they came, at `run` */
};

#define PYVFIO_MAX_FDS 253 /* SCM_MAX_FD of the kernel: more cannot come with one chunk */

/* The descriptors that came with a chunk; `lost` where some did not fit. */
struct pyvfio_rights {
    int lost;
    uint32_t count;
    int fds[PYVFIO_MAX_FDS];
};

static void pyvfio_keep_rights(struct pyvfio_rights *rights, struct msghdr *message)
{
    struct cmsghdr *entry;

    for (entry = CMSG_FIRSTHDR(message); entry; entry = CMSG_NXTHDR(message, entry)) {
        if (entry->cmsg_level == SOL_SOCKET && entry->cmsg_type == SCM_RIGHTS) {
            size_t size = entry->cmsg_len - CMSG_LEN(0);

            memcpy(rights->fds, CMSG_DATA(entry), size);
            rights->count = (uint32_t)(size / sizeof(int));
        }
    }
    rights->lost = !!(message->msg_flags & MSG_CTRUNC);
}

/*
 * Receive into `parts`; descriptors that come along are put to `rights`, which must have none.
 * Returns as recvmsg(2) does, with -errno for -1.
 *
 * Not through libc: there it is a point where a thread can be cancelled, for which a process with
 * threads pays at each call.
 */
static ssize_t pyvfio_receive_parts(int fd, struct iovec *parts, size_t count, int flags,
                                    struct pyvfio_rights *rights)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(PYVFIO_MAX_FDS * sizeof(int))];
    } control;
    struct msghdr message = {
        .msg_iov = parts,
        .msg_iovlen = count,
        .msg_control = &control,
        .msg_controllen = sizeof(control),
    };
    ssize_t size = syscall(SYS_recvmsg, fd, &message, flags | MSG_CMSG_CLOEXEC);

    if (size < 0)
        return -errno;
    if (message.msg_controllen || (message.msg_flags & MSG_CTRUNC))
        pyvfio_keep_rights(rights, &message);
    return size;
}

static ssize_t pyvfio_receive_some(int fd, void *data, size_t size, int flags,
                                   struct pyvfio_rights *rights)
{
    struct iovec part = {data, size};

    return pyvfio_receive_parts(fd, &part, 1, flags, rights);
}
