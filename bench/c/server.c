// SPDX-License-Identifier: BSD-3-Clause
/*
 * The C reference server: a PCI function with 4 KiB (BAR 0) and 4 MiB (BAR 2) of memory, that does
 * as little for a request as can be done, so that a client's own cost is seen.  It takes many
 * messages with one receive, and trusts its client: it is the other end of a measurement.
 */
#include "wire.h"

enum { BAR0_SIZE = 4096, BAR2_SIZE = 4 << 20, CONFIG_SIZE = 256 };
enum { BAR0 = 0, BAR2 = 2, CONFIG = 7, REGIONS = 9, IRQS = 5 };
enum { READ_WRITE = 3 };
enum { INBOX = MAX_DATA + 4096, MAX_FDS = 16 };

static const char CAPABILITIES[] = "{\"capabilities\":{\"max_msg_fds\":16,"
    "\"max_data_xfer_size\":1048576,\"max_dma_maps\":65535,\"pgsizes\":4096,"
    "\"write_multiple\":true}}";

static unsigned char bar0[BAR0_SIZE], bar2[BAR2_SIZE];
static unsigned char config[CONFIG_SIZE] = {
    [0x00] = 0x36, 0x1b, 0xff, 0x00, /* vendor, device */
    [0x08] = 0x01, 0x00, 0x00, 0xff, /* revision, class */
};
static char inbox[INBOX];

struct write_entry {
    uint64_t offset;
    uint32_t region;
    uint32_t count;
    unsigned char data[8];
} PACKED;

struct write_count {
    uint64_t count;
} PACKED;

/* The bytes that an access is to; NULL where there are none. */
static unsigned char *place(uint32_t region, uint64_t offset, uint32_t count)
{
    static const struct {
        unsigned char *memory;
        uint64_t size;
    } regions[REGIONS] = {
        [BAR0] = {bar0, BAR0_SIZE}, [BAR2] = {bar2, BAR2_SIZE}, [CONFIG] = {config, CONFIG_SIZE}};

    if (region >= REGIONS || offset > regions[region].size ||
        count > regions[region].size - offset)
        return NULL;
    return regions[region].memory + offset;
}

/* The reply to `request`: `fixed` bytes of `body`, then `size` bytes of `data`. */
static int reply(int fd, const struct header *request, const void *body, size_t fixed,
                 const void *data, size_t size)
{
    char head[sizeof(struct header) + 64];
    struct header *header = (struct header *)head;
    struct iovec parts[2] = {{head, sizeof(*header) + fixed}, {(void *)data, size}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = size ? 2 : 1};
    ssize_t sent;

    *header = (struct header){request->id, request->command,
                              (uint32_t)(sizeof(*header) + fixed + size), REPLY, 0};
    if (fixed)
        memcpy(head + sizeof(*header), body, fixed);
    if (request->flags & NO_REPLY)
        return 0;
    sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    if (sent < 0)
        return -errno;
    if ((size_t)sent < sizeof(*header) + fixed)
        return -EIO;
    return size ? send_all(fd, (const char *)data + (sent - (ssize_t)(sizeof(*header) + fixed)),
                           size - ((size_t)sent - sizeof(*header) - fixed))
                : 0;
}

static int refuse(int fd, const struct header *request, uint32_t error)
{
    struct header answer = {request->id, request->command, sizeof(answer), REPLY | ERROR, error};

    return request->flags & NO_REPLY ? 0 : send_all(fd, &answer, sizeof(answer));
}

static int access_region(int fd, const struct header *request, struct region_access *access)
{
    unsigned char *memory = place(access->region, access->offset, access->count);

    if (!memory)
        return refuse(fd, request, EINVAL);
    if (request->command == REGION_READ)
        return reply(fd, request, access, sizeof(*access), memory, access->count);
    memcpy(memory, access + 1, access->count);
    return reply(fd, request, access, sizeof(*access), NULL, 0);
}

static int write_many(int fd, const struct header *request, const struct write_count *writes)
{
    const struct write_entry *entry = (const struct write_entry *)(writes + 1);

    for (uint64_t i = 0; i < writes->count; i++, entry++) {
        unsigned char *memory = place(entry->region, entry->offset, entry->count);

        if (!memory)
            return refuse(fd, request, EINVAL);
        memcpy(memory, entry->data, entry->count);
    }
    return reply(fd, request, writes, sizeof(*writes), NULL, 0);
}

static int describe_region(int fd, const struct header *request, struct region_info *info)
{
    if (info->index >= REGIONS)
        return refuse(fd, request, EINVAL);
    info->size = info->index == BAR0     ? BAR0_SIZE
                 : info->index == BAR2   ? BAR2_SIZE
                 : info->index == CONFIG ? CONFIG_SIZE
                                         : 0;
    info->flags = info->size ? READ_WRITE : 0;
    info->argsz = sizeof(*info);
    info->cap_offset = 0;
    info->offset = 0;
    return reply(fd, request, info, sizeof(*info), NULL, 0);
}

static int carry_out(int fd, struct header *request)
{
    static const struct device_info device = {sizeof(device), RESETTABLE | PCI_DEVICE,
                                              REGIONS, IRQS};
    struct irq_info *irq;
    void *body = request + 1;
    uint32_t version = 0;

    switch (request->command) {
    case VERSION:
        return reply(fd, request, &version, sizeof(version), CAPABILITIES, sizeof(CAPABILITIES));
    case DEVICE_GET_INFO:
        return reply(fd, request, &device, sizeof(device), NULL, 0);
    case DEVICE_GET_REGION_INFO:
        return describe_region(fd, request, body);
    case DEVICE_GET_IRQ_INFO:
        irq = body;
        irq->flags = irq->count = 0;
        return reply(fd, request, irq, sizeof(*irq), NULL, 0);
    case DMA_UNMAP:
        return reply(fd, request, body, sizeof(struct dma_unmap), NULL, 0);
    case REGION_READ:
    case REGION_WRITE:
        return access_region(fd, request, body);
    case REGION_WRITE_MULTI:
        return write_many(fd, request, body);
    case DMA_MAP:
    case DEVICE_SET_IRQS:
    case DEVICE_RESET:
        return reply(fd, request, NULL, 0, NULL, 0);
    }
    return refuse(fd, request, ENOTSUP);
}

/* Take what there is, and close the descriptors that came with it. */
static ssize_t take(int fd, char *data, size_t room)
{
    union {
        char space[CMSG_SPACE(MAX_FDS * sizeof(int))];
        struct cmsghdr aligned;
    } control;
    struct iovec part = {data, room};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.space,
                             .msg_controllen = sizeof(control.space)};
    ssize_t got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);

    if (got <= 0)
        return got;
    for (struct cmsghdr *rights = CMSG_FIRSTHDR(&message); rights;
         rights = CMSG_NXTHDR(&message, rights)) {
        size_t count = (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        int fds[MAX_FDS];

        memcpy(fds, CMSG_DATA(rights), count * sizeof(int));
        for (size_t i = 0; i < count; i++)
            close(fds[i]);
    }
    return got;
}

/* Serve one client until it leaves. */
static int serve(int fd)
{
    size_t have = 0;

    for (;;) {
        ssize_t got = take(fd, inbox + have, sizeof(inbox) - have);
        size_t at = 0;

        if (got <= 0)
            return got ? -errno : 0;
        have += (size_t)got;
        while (have - at >= sizeof(struct header)) {
            struct header *request = (struct header *)(inbox + at);
            int failed;

            if (request->size < sizeof(*request) || request->size > sizeof(inbox))
                return -EPROTO;
            if (have - at < request->size)
                break;
            failed = carry_out(fd, request);
            if (failed)
                return failed;
            at += request->size;
        }
        have -= at;
        memmove(inbox, inbox + at, have);
    }
}

/* Serve the clients of a listening socket, one after the other. */
int serve_peer(int listening)
{
    for (;;) {
        int fd = accept(listening, NULL, NULL);
        int failed;

        if (fd < 0)
            return -errno;
        failed = serve(fd);
        close(fd);
        if (failed && failed != -EPIPE && failed != -ECONNRESET)
            return failed;
    }
}
