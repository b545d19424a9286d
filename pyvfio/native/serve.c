// SPDX-License-Identifier: BSD-3-Clause
/*
 * A server's usual requests: reads and writes of registers and of memory.
 *
 * pyvfio_serve() takes requests from the socket, in order, and carries out those that are to memory
 * by itself.  An access of a register is handed over, and anything that is not usual is left where
 * it is, at `start` of what was received, for the general way (pyvfio/server/direct.py).  Nothing is
 * refused here: what cannot be done is not usual.
 *
 * How much is read at one time.  Descriptors belong to the message that holds the first byte of
 * what they were sent with, but the kernel only tells that they came with something in what was
 * read, after which it stops.  So no more is read than PYVFIO_AT_LEAST bytes from the start of a
 * message, unless it has been seen (MSG_PEEK) that no descriptors come: no message that can have
 * some is shorter, so they are those of the last one that begins in what was read.
 *
 * The socket is a blocking one with SO_RCVTIMEO: an access costs one switch to the peer and one
 * back, with no poll(2) between them.  The time-out is short, since nobody can wake who waits.
 */
#include <poll.h>
#include <pthread.h>

#define PYVFIO_AT_LEAST 36 /* bytes of the shortest message with descriptors, SET_IRQS */
#define PYVFIO_INBOX 65536 /* longer messages go the general way */
#define PYVFIO_OUTBOX 65536
#define PYVFIO_SAMPLE 64   /* requests after which it is looked whether more are there */
#define PYVFIO_MOST 256    /* messages after which signals have their turn */
#define PYVFIO_PATIENCE 10 /* milliseconds that a full socket is waited for */

/* A part of a region: memory, or registers where `memory` is 0. */
struct pyvfio_backed {
    uint32_t region;
    uint64_t start;
    uint64_t end;
    uintptr_t memory; /* address of `start` */
};

struct pyvfio_service {
    int fd;
    volatile int hurried; /* set by anyone, to have pyvfio_serve() come back soon */
    int writable;         /* memory may be written */
    uint32_t max_data;
    uint32_t areas;
    const struct pyvfio_backed *area;

    /* Held by whoever sends; `queued` and `rest` are only touched with it. */
    pthread_mutex_t sending;
    int queued; /* something is to be sent first */
    int rest;   /* what is left of `out` and `data` is to be queued */

    /* Received and not carried out yet; the descriptors are those of the message at `fds_at`. */
    uint32_t start;
    uint32_t end;
    uint32_t fds_at;
    struct pyvfio_rights rights;
    uint64_t apart; /* bytes to come that may have descriptors */
    uint32_t sample;
    int batch;      /* more requests may be there already */
    int crowded;    /* so it was when this was tried last */

    /* Handed over */
    struct pyvfio_header asked;
    struct pyvfio_range access;
    uint64_t value;
    uint32_t run;
    uint32_t posted;
    int error;

    /* Replies that were not sent yet, and data behind the last of them */
    uint32_t out_start;
    uint32_t out_end;
    uint64_t size;
    const uint8_t *data;

    _Alignas(8) uint8_t in[PYVFIO_INBOX];
    _Alignas(8) uint8_t out[PYVFIO_OUTBOX];
};

static int pyvfio_service_init(struct pyvfio_service *service)
{
    return -pthread_mutex_init(&service->sending, NULL);
}

static void pyvfio_sending_begin(struct pyvfio_service *service)
{
    pthread_mutex_lock(&service->sending);
}

static void pyvfio_sending_end(struct pyvfio_service *service)
{
    pthread_mutex_unlock(&service->sending);
}

/* Sending */

/* sendmsg(2) costs more than send(2), which does unless there are data to be sent from elsewhere. */
static ssize_t serve_send_some(struct pyvfio_service *service, size_t replies)
{
    const int flags = MSG_NOSIGNAL | MSG_DONTWAIT;
    void *start = service->out + service->out_start;
    struct iovec parts[] = {{start, replies}, {(void *)service->data, service->size}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

    if (!service->size)
        return syscall(SYS_sendto, service->fd, start, replies, flags, NULL, 0);
    return sendmsg(service->fd, &message, flags);
}

static int serve_send(struct pyvfio_service *service)
{
    struct pollfd room = {service->fd, POLLOUT, 0};

    for (;;) {
        size_t replies = service->out_end - service->out_start, of_replies;
        ssize_t sent;

        if (!replies && !service->size) {
            service->out_start = service->out_end = 0;
            return PYVFIO_DONE;
        }
        sent = serve_send_some(service, replies);
        if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            service->error = errno;
            return PYVFIO_FAILED;
        }
        if (sent < 0) {
            if (service->hurried || poll(&room, 1, PYVFIO_PATIENCE) <= 0)
                return PYVFIO_UNSENT;
            continue;
        }
        of_replies = (size_t)sent < replies ? (size_t)sent : replies;
        service->out_start += (uint32_t)of_replies;
        service->data += (size_t)sent - of_replies;
        service->size -= (size_t)sent - of_replies;
    }
}

static int serve_flush(struct pyvfio_service *service)
{
    int status = PYVFIO_UNSENT;

    if (service->out_start == service->out_end)
        return PYVFIO_DONE;
    pthread_mutex_lock(&service->sending);
    if (!service->queued)
        status = serve_send(service);
    service->rest = status == PYVFIO_UNSENT;
    pthread_mutex_unlock(&service->sending);
    return status;
}

/* Have room for a reply with so much behind the header. */
static int serve_make_reply_room(struct pyvfio_service *service, size_t size)
{
    if (PYVFIO_OUTBOX - service->out_end >= sizeof(struct pyvfio_header) + size)
        return PYVFIO_DONE;
    return serve_flush(service);
}

/* A reply's header and the start of its payload, of `size` bytes in all; there is room. */
static void serve_reply(struct pyvfio_service *service, const struct pyvfio_header *request,
                        uint32_t flags, uint32_t error, const void *payload, size_t here,
                        size_t size)
{
    struct pyvfio_header reply = {
        request->id, request->command, (uint32_t)(sizeof(reply) + size), flags, error,
    };
    uint8_t *out = service->out + service->out_end;

    memcpy(out, &reply, sizeof(reply));
    memcpy(out + sizeof(reply), payload, here);
    service->out_end += (uint32_t)(sizeof(reply) + here);
}

/* Receiving */

/* Where the last message begins of which there is something. */
static uint32_t serve_last_start(const struct pyvfio_service *service)
{
    uint32_t at = service->start;
    struct pyvfio_header header;

    while (service->end - at > sizeof(header)) {
        memcpy(&header, service->in + at, sizeof(header));
        if (header.size < sizeof(header) || header.size >= service->end - at)
            break;
        at += header.size;
    }
    return at;
}

static int serve_has_fds(const struct pyvfio_service *service)
{
    return service->rights.count || service->rights.lost;
}

static int serve_receive(struct pyvfio_service *service, size_t size, int flags)
{
    ssize_t count = pyvfio_receive_some(service->fd, service->in + service->end, size, flags,
                                        &service->rights);

    if (count == -EAGAIN)
        return PYVFIO_LATE;
    if (count == -EINTR)
        return PYVFIO_PAUSE;
    if (count <= 0)
        return PYVFIO_ENDED;
    service->end += (uint32_t)count;
    service->apart -= (uint64_t)count < service->apart ? (uint64_t)count : service->apart;
    if (serve_has_fds(service))
        service->fds_at = serve_last_start(service);
    return PYVFIO_DONE;
}

/* Take as many messages as there are, if no descriptors come with them. */
static int serve_receive_many(struct pyvfio_service *service)
{
    struct iovec part = {service->in + service->end, PYVFIO_INBOX - service->end};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t count;

    if (service->apart)
        return PYVFIO_LATE;
    count = recvmsg(service->fd, &message, MSG_PEEK | MSG_DONTWAIT);
    if (count <= 0)
        return PYVFIO_LATE;
    if (message.msg_flags & MSG_CTRUNC) {
        service->apart = (uint64_t)count;
        return PYVFIO_LATE;
    }
    return serve_receive(service, (size_t)count, MSG_DONTWAIT);
}

/* Bytes of the first message that are missing; -1 where it cannot be had here. */
static ssize_t serve_missing(const struct pyvfio_service *service)
{
    size_t there = service->end - service->start;
    struct pyvfio_header header;

    if (there < sizeof(header))
        return (ssize_t)(PYVFIO_AT_LEAST - there);
    memcpy(&header, service->in + service->start, sizeof(header));
    if (header.size < sizeof(header) || header.size > PYVFIO_INBOX)
        return -1;
    return header.size > there ? (ssize_t)(header.size - there) : 0;
}

static void serve_make_room(struct pyvfio_service *service)
{
    uint32_t there = service->end - service->start;

    memmove(service->in, service->in + service->start, there);
    service->start = 0;
    service->end = there;
}

/* Have a whole message at `start`. */
static int serve_next(struct pyvfio_service *service)
{
    for (;;) {
        ssize_t missing = serve_missing(service);
        int status;

        if (!missing)
            return PYVFIO_DONE;
        /* With descriptors it is nothing for us. */
        if (missing < 0 || serve_has_fds(service))
            return PYVFIO_OTHER;
        serve_make_room(service);
        if (service->end)
            service->batch = 1; /* a message has begun, so others may follow */
        if (service->batch && serve_receive_many(service) == PYVFIO_DONE) {
            service->crowded = 1;
            continue;
        }
        service->batch = 0;
        status = serve_flush(service);
        if (status == PYVFIO_DONE)
            status = service->hurried ? PYVFIO_PAUSE
                                      : serve_receive(service, (size_t)missing, 0);
        if (status != PYVFIO_DONE)
            return status;
        /* A client that had several under way has so again. */
        service->batch = service->crowded;
        service->crowded = 0;
    }
}

/* Carrying out */

static const struct pyvfio_backed *serve_find(const struct pyvfio_service *service,
                                            const struct pyvfio_range *range)
{
    uint32_t at;

    if (!range->count || range->count > service->max_data)
        return NULL;
    for (at = 0; at < service->areas; at++) {
        const struct pyvfio_backed *area = &service->area[at];

        if (area->region == range->region && range->offset >= area->start &&
            range->offset < area->end && range->count <= area->end - range->offset)
            return area;
    }
    return NULL;
}

static int serve_is_register(const struct pyvfio_range *range)
{
    uint32_t width = range->count;

    return width <= 8 && !(width & (width - 1)) && !(range->offset & (width - 1));
}

static uintptr_t serve_place(const struct pyvfio_backed *area, const struct pyvfio_range *range)
{
    return area->memory + (uintptr_t)(range->offset - area->start);
}

/* A register's width, aligned, is one access.  Returns -1 where the memory cannot be reached. */
static int serve_load(void *to, uintptr_t memory, uint32_t size)
{
    uint64_t value;

    switch (memory % size ? 0 : size) {
    case 1:
        value = pyvfio_read8(memory);
        break;
    case 2:
        value = pyvfio_read16(memory);
        break;
    case 4:
        value = pyvfio_read32(memory);
        break;
    case 8:
        value = pyvfio_read64(memory);
        break;
    default:
        return pyvfio_copy((uintptr_t)to, memory, size);
    }
    value = htole64(value);
    memcpy(to, &value, size);
    return pyvfio_faulted() ? -1 : 0;
}

static int serve_store(uintptr_t memory, const void *from, uint32_t size)
{
    uint64_t value = 0;

    if (size > sizeof(value) || memory % size)
        return pyvfio_copy(memory, (uintptr_t)from, size);
    memcpy(&value, from, size);
    value = le64toh(value);
    switch (size) {
    case 1:
        return pyvfio_write8(memory, (uint8_t)value);
    case 2:
        return pyvfio_write16(memory, (uint16_t)value);
    case 4:
        return pyvfio_write32(memory, (uint32_t)value);
    case 8:
        return pyvfio_write64(memory, value);
    default:
        return pyvfio_copy(memory, (uintptr_t)from, size);
    }
}

/* The reply to a read of memory; what is much is sent from where it is. */
static int serve_read_memory(struct pyvfio_service *service, const struct pyvfio_header *header,
                             const struct pyvfio_range *range, uintptr_t memory)
{
    size_t size = sizeof(*range) + range->count;
    int apart = range->count > PYVFIO_OUTBOX / 2;
    int status = serve_make_reply_room(service, apart ? sizeof(*range) : size);

    if (status != PYVFIO_DONE)
        return status;
    if (!apart && serve_load(service->out + service->out_end + sizeof(*header) + sizeof(*range),
                             memory, range->count))
        return PYVFIO_OTHER;
    serve_reply(service, header, PYVFIO_REPLY, 0, range, sizeof(*range), size);
    service->start += header->size;
    if (!apart) {
        service->out_end += range->count;
        return PYVFIO_DONE;
    }
    service->data = (const uint8_t *)memory;
    service->size = range->count;
    return serve_flush(service);
}

static int serve_hand_over(struct pyvfio_service *service, const struct pyvfio_header *header,
                           const struct pyvfio_range *range, int what)
{
    int status = serve_flush(service);

    if (status != PYVFIO_DONE)
        return status;
    service->asked = *header;
    service->access = *range;
    service->start += header->size;
    return what;
}

static int serve_read(struct pyvfio_service *service, const struct pyvfio_header *header)
{
    const struct pyvfio_backed *area;
    struct pyvfio_range range;

    if (header->size != sizeof(*header) + sizeof(range) || header->flags != PYVFIO_COMMAND)
        return PYVFIO_OTHER;
    memcpy(&range, service->in + service->start + sizeof(*header), sizeof(range));
    area = serve_find(service, &range);
    if (area && area->memory)
        return serve_read_memory(service, header, &range, serve_place(area, &range));
    if (area && serve_is_register(&range))
        return serve_hand_over(service, header, &range, PYVFIO_READ);
    return PYVFIO_OTHER;
}

/* The range of a write, if it is one; the data follow it. */
static const uint8_t *serve_write_range(const struct pyvfio_service *service, uint32_t at,
                                        struct pyvfio_header *header, struct pyvfio_range *range)
{
    const uint8_t *message = service->in + at;

    memcpy(header, message, sizeof(*header));
    if (header->command != PYVFIO_REGION_WRITE || header->size < sizeof(*header) + sizeof(*range))
        return NULL;
    memcpy(range, message + sizeof(*header), sizeof(*range));
    if (range->count != header->size - sizeof(*header) - sizeof(*range))
        return NULL;
    return message + sizeof(*header) + sizeof(*range);
}

/* How many posted writes of registers, of one size, follow each other. */
static uint32_t serve_count_posted(const struct pyvfio_service *service, uint32_t size)
{
    uint32_t at = service->start, count = 0;

    for (; service->end - at >= size; at += size, count++) {
        const struct pyvfio_backed *area;
        struct pyvfio_header header;
        struct pyvfio_range range;

        if ((serve_has_fds(service) && at == service->fds_at) ||
            !serve_write_range(service, at, &header, &range) || header.size != size ||
            header.flags != PYVFIO_NO_REPLY)
            break;
        area = serve_find(service, &range);
        if (!area || area->memory || !serve_is_register(&range))
            break;
    }
    return count;
}

static int serve_post_registers(struct pyvfio_service *service, const struct pyvfio_header *header,
                                const struct pyvfio_range *range)
{
    uint32_t first = service->start, count = serve_count_posted(service, header->size);
    int status = serve_hand_over(service, header, range, PYVFIO_POSTED);

    if (status != PYVFIO_POSTED)
        return status;
    service->run = first;
    service->posted = count;
    service->start = first + count * header->size;
    service->batch = 1;
    return PYVFIO_POSTED;
}

static int serve_write_memory(struct pyvfio_service *service, const struct pyvfio_header *header,
                              const struct pyvfio_range *range, uintptr_t memory,
                              const uint8_t *data)
{
    int status = serve_make_reply_room(service, sizeof(*range));

    if (status != PYVFIO_DONE)
        return status;
    if (!service->writable || serve_store(memory, data, range->count))
        return PYVFIO_OTHER;
    service->start += header->size;
    if (header->flags == PYVFIO_NO_REPLY)
        service->batch = 1;
    else
        serve_reply(service, header, PYVFIO_REPLY, 0, range, sizeof(*range), sizeof(*range));
    return PYVFIO_DONE;
}

static int serve_write(struct pyvfio_service *service, struct pyvfio_header *header)
{
    struct pyvfio_range range;
    const struct pyvfio_backed *area;
    const uint8_t *data = serve_write_range(service, service->start, header, &range);

    if (!data)
        return PYVFIO_OTHER;
    area = serve_find(service, &range);
    if (area && area->memory)
        return serve_write_memory(service, header, &range, serve_place(area, &range), data);
    if (!area || !serve_is_register(&range))
        return PYVFIO_OTHER;
    if (header->flags == PYVFIO_NO_REPLY)
        return serve_post_registers(service, header, &range);
    service->value = 0;
    memcpy(&service->value, data, range.count);
    service->value = le64toh(service->value);
    return serve_hand_over(service, header, &range, PYVFIO_WRITE);
}

/* Where a write of a REGION_WRITE_MULTI goes; 0 where it is not to memory. */
static uintptr_t serve_write_place(const struct pyvfio_service *service,
                                   const struct pyvfio_write *write)
{
    const struct pyvfio_backed *area = serve_find(service, &write->range);

    if (!area || !area->memory || write->range.count > sizeof(write->data))
        return 0;
    return serve_place(area, &write->range);
}

static int serve_write_multi(struct pyvfio_service *service, const struct pyvfio_header *header)
{
    const uint8_t *payload = service->in + service->start + sizeof(*header);
    struct pyvfio_write write;
    uint64_t count, at;
    int status;

    if (header->size < sizeof(*header) + sizeof(count) || !service->writable)
        return PYVFIO_OTHER;
    memcpy(&count, payload, sizeof(count));
    payload += sizeof(count);
    if (count > PYVFIO_INBOX / sizeof(write) ||
        header->size != sizeof(*header) + sizeof(count) + count * sizeof(write))
        return PYVFIO_OTHER;
    for (at = 0; at < count; at++) {
        memcpy(&write, payload + at * sizeof(write), sizeof(write));
        if (!serve_write_place(service, &write))
            return PYVFIO_OTHER;
    }
    status = serve_make_reply_room(service, sizeof(count));
    if (status != PYVFIO_DONE)
        return status;
    for (at = 0; at < count; at++) {
        memcpy(&write, payload + at * sizeof(write), sizeof(write));
        if (serve_store(serve_write_place(service, &write), write.data, write.range.count))
            return PYVFIO_OTHER;
    }
    service->start += header->size;
    if (header->flags == PYVFIO_NO_REPLY)
        service->batch = 1;
    else
        serve_reply(service, header, PYVFIO_REPLY, 0, &count, sizeof(count), sizeof(count));
    return PYVFIO_DONE;
}

static int serve_carry_out(struct pyvfio_service *service)
{
    struct pyvfio_header header;

    memcpy(&header, service->in + service->start, sizeof(header));
    if ((serve_has_fds(service) && service->start == service->fds_at) ||
        (header.flags != PYVFIO_COMMAND && header.flags != PYVFIO_NO_REPLY))
        return PYVFIO_OTHER;
    /*
     * A client that posts sends on; another is asked now and then whether it has.  One that reads
     * need not be: what is received for a read would reach into the next message.
     */
    if (header.size >= PYVFIO_AT_LEAST && ++service->sample % PYVFIO_SAMPLE == 0)
        service->batch = 1;
    switch (header.command) {
    case PYVFIO_REGION_READ:
        return serve_read(service, &header);
    case PYVFIO_REGION_WRITE:
        return serve_write(service, &header);
    case PYVFIO_REGION_WRITE_MULTI:
        return serve_write_multi(service, &header);
    default:
        return PYVFIO_OTHER;
    }
}

/* Serve until something else is to be done; see `enum pyvfio_status`. */
static int pyvfio_serve(struct pyvfio_service *service)
{
    int left = PYVFIO_MOST, status = PYVFIO_DONE;

    while (status == PYVFIO_DONE) {
        status = left-- && !service->hurried ? serve_next(service) : PYVFIO_PAUSE;
        if (status == PYVFIO_DONE)
            status = serve_carry_out(service);
    }
    /* Whoever goes on sends as well. */
    if (status == PYVFIO_OTHER || status == PYVFIO_PAUSE || status == PYVFIO_ENDED) {
        int flushed = serve_flush(service);

        if (flushed != PYVFIO_DONE)
            return flushed;
    }
    return status;
}

static void serve_prepare_answer(struct pyvfio_service *service, int error, uint64_t value)
{
    struct {
        struct pyvfio_range range;
        uint64_t value;
    } payload = {service->access, htole64(value)};
    size_t size = sizeof(payload.range);

    if (service->asked.command == PYVFIO_REGION_READ)
        size += payload.range.count;
    if (error)
        serve_reply(service, &service->asked, PYVFIO_REPLY | PYVFIO_ERROR, (uint32_t)error,
                    &payload, 0, 0);
    else
        serve_reply(service, &service->asked, PYVFIO_REPLY, 0, &payload, size, size);
}

/* Answer the access that was handed over: with `value`, or an errno. */
static int pyvfio_answer(struct pyvfio_service *service, int error, uint64_t value)
{
    serve_prepare_answer(service, error, value);
    return serve_flush(service);
}

/* The same, and go on. */
static int pyvfio_answer_and_serve(struct pyvfio_service *service, int error, uint64_t value)
{
    serve_prepare_answer(service, error, value);
    return pyvfio_serve(service);
}
