// SPDX-License-Identifier: BSD-3-Clause
/*
 * The usual exchange on a vfio-user socket: requests go out, exactly their replies come in.
 *
 * Whatever is not usual is not handled here.  These functions then stop and say how far they came:
 * what of the requests the socket has taken, how many of them are answered, which bytes were read
 * that belong to something else, and the descriptors that came along.  Who called them goes on from
 * there, byte by byte (pyvfio/transport/exchange.py).
 *
 * The socket is a blocking one with SO_RCVTIMEO, so that an answer costs one switch to the peer and
 * one back, without a poll between them; the time-out is short, since meanwhile nobody can wake the
 * caller.
 */
#include <endian.h>
#include <poll.h>
#include <pthread.h>
#include <time.h>

#define PYVFIO_RECEIVED 4096
#define PYVFIO_REST_NS 10000000
#define PYVFIO_IDS 0x4000
#define PYVFIO_PATIENCE_NS 5000000

/*
 * Waiting without sleeping: worth it where the peer answers from another CPU before this thread
 * would have gone to sleep and been woken.  Whether it is, is measured: PYVFIO_SAMPLES exchanges
 * of either kind, and the quicker kind for the next `period`, which doubles while sleeping wins.
 */
#define PYVFIO_SAMPLES 8
#define PYVFIO_SPIN_NS 30000
#define PYVFIO_OUTLIER_NS 200000
#define PYVFIO_FIRST_PERIOD 512
#define PYVFIO_LAST_PERIOD 65536

struct pyvfio_stream {
    int fd;
    int may_spin;
    struct pyvfio_claims *claims;
    /* Ids are `id_base` and PYVFIO_IDS - 1 more, in turn; nobody else gives any of them. */
    uint16_t id_base;
    uint16_t id_count;
    uint16_t first_id; /* of the last call */
    uint64_t thread;   /* the same, as pthread_self() says */
    uint32_t claimed;  /* what it has claimed, and not given up */

    /* How far the last call came */
    int status;
    int error;
    uint64_t sent;        /* bytes of the requests */
    uint64_t begun;       /* requests of which some bytes were sent */
    uint32_t partial;     /* bytes of the last of them, unless all were sent */
    uint64_t answered;    /* requests */
    uint32_t unread;      /* bytes at the start of `received`, for who called */
    uint64_t unread_data; /* and then bytes at the start of the caller's buffer */
    struct pyvfio_rights rights;

    /* Spinning */
    int spins;
    uint32_t countdown;
    uint32_t period;
    uint32_t samples;
    uint64_t slept_ns;
    uint64_t spun_ns;
    uint32_t missed;

    _Alignas(8) uint8_t received[PYVFIO_RECEIVED];
};

static uint64_t pyvfio_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint16_t pyvfio_next_id(const struct pyvfio_stream *stream)
{
    return stream->id_base + stream->id_count % PYVFIO_IDS;
}

static uint16_t pyvfio_take_id(struct pyvfio_stream *stream)
{
    uint16_t id = pyvfio_next_id(stream);

    stream->id_count++;
    return id;
}

/* Begin a call that has claimed so much. */
static void pyvfio_begin(struct pyvfio_stream *stream, uint32_t claimed)
{
    stream->first_id = pyvfio_next_id(stream);
    stream->thread = (uint64_t)pthread_self();
    /* Behind the thread: both together say whose the rest of a call is. */
    __atomic_store_n(&stream->claimed, claimed, __ATOMIC_RELEASE);
    stream->error = 0;
    stream->sent = 0;
    stream->begun = 0;
    stream->partial = 0;
    stream->answered = 0;
    stream->unread = 0;
    stream->unread_data = 0;
    stream->rights.count = 0;
    stream->rights.lost = 0;
}

/* Give up claims that the call still has: another may have got those that it has no more. */
static uint32_t pyvfio_give_up(struct pyvfio_stream *stream, uint32_t bits)
{
    bits &= stream->claimed;
    stream->claimed &= ~bits;
    return pyvfio_claims_clear(stream->claims, bits);
}

/* Whether this thread's last call has ended half way, and nobody has gone on from there. */
static int pyvfio_left_by_me(const struct pyvfio_stream *stream)
{
    return __atomic_load_n(&stream->claimed, __ATOMIC_ACQUIRE) &&
           stream->thread == (uint64_t)pthread_self();
}

/* Somebody has gone on from where this thread's last call has ended; may be repeated. */
static void pyvfio_leave(struct pyvfio_stream *stream)
{
    if (pyvfio_left_by_me(stream))
        pyvfio_give_up(stream, PYVFIO_C_SENDS | PYVFIO_C_READS);
}

static int pyvfio_would_wait(int number)
{
    return number == EAGAIN || number == EWOULDBLOCK || number == EINTR;
}

/* Room for one descriptor, which goes with the first byte of a message. */
union pyvfio_control {
    struct cmsghdr header;
    char space[CMSG_SPACE(sizeof(int))];
};

static void pyvfio_attach(struct msghdr *message, union pyvfio_control *control, int descriptor)
{
    control->header = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(sizeof(int)),
        .cmsg_level = SOL_SOCKET,
        .cmsg_type = SCM_RIGHTS,
    };
    memcpy(CMSG_DATA(&control->header), &descriptor, sizeof(int));
    message->msg_control = control;
    message->msg_controllen = sizeof(*control);
}

/* Send without waiting; `descriptor` is -1 for none. */
static int pyvfio_send(struct pyvfio_stream *stream, const void *data, size_t size, int descriptor)
{
    struct iovec part = {(void *)data, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    union pyvfio_control control = {0};
    ssize_t count;

    if (descriptor < 0) {
        count = syscall(SYS_sendto, stream->fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT, NULL, 0);
    } else {
        pyvfio_attach(&message, &control, descriptor);
        count = sendmsg(stream->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    if (count < 0) {
        stream->error = pyvfio_would_wait(errno) ? 0 : errno;
        return PYVFIO_UNSENT;
    }
    stream->sent += (uint64_t)count;
    return (size_t)count == size ? PYVFIO_DONE : PYVFIO_UNSENT;
}

/* One read.  Returns the number of bytes, or minus the status; descriptors end the usual. */
static ssize_t pyvfio_receive(struct pyvfio_stream *stream, struct iovec *parts, size_t count,
                              int flags)
{
    ssize_t size = pyvfio_receive_parts(stream->fd, parts, count, flags, &stream->rights);

    if (size > 0)
        return size;
    if (!size)
        return -PYVFIO_ENDED;
    if (pyvfio_would_wait((int)-size))
        return -PYVFIO_LATE;
    stream->error = (int)-size;
    return -PYVFIO_FAILED;
}

/* The same, but asks again and again for a while before it sleeps. */
static ssize_t pyvfio_spin(struct pyvfio_stream *stream, struct iovec *parts, size_t count)
{
    uint64_t end = pyvfio_now() + PYVFIO_SPIN_NS;

    do {
        ssize_t size = pyvfio_receive(stream, parts, count, MSG_DONTWAIT);

        if (size != -PYVFIO_LATE)
            return size;
    } while (pyvfio_now() < end);
    stream->missed++;
    return pyvfio_receive(stream, parts, count, 0);
}

/* Spinning must win clearly, for it has its price; and both have outliers. */
static void pyvfio_decide(struct pyvfio_stream *stream)
{
    int pays = stream->missed < 2 && 4 * stream->spun_ns < 3 * stream->slept_ns;

    if (pays)
        stream->period = PYVFIO_FIRST_PERIOD;
    else if (stream->period < PYVFIO_LAST_PERIOD)
        stream->period = stream->period ? 2 * stream->period : PYVFIO_FIRST_PERIOD;
    stream->spins = pays;
    stream->countdown = stream->period;
    stream->samples = stream->missed = 0;
    stream->slept_ns = stream->spun_ns = 0;
}

/* One of the samples: those that sleep come first. */
static ssize_t pyvfio_sample(struct pyvfio_stream *stream, struct iovec *parts, size_t count)
{
    int sleeps = stream->samples < PYVFIO_SAMPLES;
    uint64_t start = pyvfio_now(), spent;
    ssize_t size = sleeps ? pyvfio_receive(stream, parts, count, 0)
                          : pyvfio_spin(stream, parts, count);

    spent = pyvfio_now() - start;
    if (spent > PYVFIO_OUTLIER_NS)
        spent = PYVFIO_OUTLIER_NS;
    *(sleeps ? &stream->slept_ns : &stream->spun_ns) += spent;
    stream->samples++;
    /* Two spins in vain tell enough: the peer is slow, or waits for this CPU. */
    if (stream->samples == 2 * PYVFIO_SAMPLES || stream->missed == 2)
        pyvfio_decide(stream);
    return size;
}

/* Wait for the first bytes of an answer. */
static ssize_t pyvfio_await(struct pyvfio_stream *stream, struct iovec *parts, size_t count)
{
    if (!stream->may_spin)
        return pyvfio_receive(stream, parts, count, 0);
    if (!stream->countdown)
        return pyvfio_sample(stream, parts, count);
    stream->countdown--;
    if (!stream->countdown)
        stream->missed = 0;
    if (stream->spins && stream->missed < 2)
        return pyvfio_spin(stream, parts, count);
    return pyvfio_receive(stream, parts, count, 0);
}

/*
 * Whether `reply` begins as the usual answer to `request` does, as far as `got` bytes of it tell: a
 * header that says `size` bytes in all, and the first `echo` bytes of the request's payload.
 */
static int pyvfio_answers(const uint8_t *reply, const uint8_t *request, size_t got, size_t size,
                          size_t echo)
{
    struct pyvfio_header theirs, ours;

    if (got < sizeof(theirs))
        return 1;
    memcpy(&theirs, reply, sizeof(theirs));
    memcpy(&ours, request, sizeof(ours));
    if (theirs.id != ours.id || theirs.command != ours.command || theirs.flags != PYVFIO_REPLY ||
        theirs.size != size)
        return 0;
    return got < sizeof(theirs) + echo ||
           !memcmp(reply + sizeof(theirs), request + sizeof(ours), echo);
}

/*
 * Receive the answer to one request, with `size` bytes of data behind the echo.
 *
 * It comes in as many pieces as the kernel makes of it.  Where the rest takes longer than
 * PYVFIO_REST_NS the peer is waited for elsewhere.
 */
static int pyvfio_take_reply(struct pyvfio_stream *stream, const void *request, size_t echo,
                             void *data, size_t size)
{
    size_t head = sizeof(struct pyvfio_header) + echo, got = 0;
    /* One part costs less than two: a register is put behind its head. */
    size_t in_one = (uint8_t *)data == stream->received + head ? head + size : head;
    uint64_t end = 0, now;
    int status;

    for (;;) {
        size_t of_first = got < in_one ? got : in_one;
        struct iovec parts[] = {
            {stream->received + of_first, in_one - of_first},
            {(uint8_t *)data + (got - of_first), head + size - in_one - (got - of_first)},
        };
        size_t count = 1 + (in_one < head + size);
        ssize_t more = got ? pyvfio_receive(stream, parts, count, 0)
                           : pyvfio_await(stream, parts, count);

        if (more < 0) {
            status = (int)-more;
            break;
        }
        got += (size_t)more;
        if (stream->rights.count || stream->rights.lost ||
            !pyvfio_answers(stream->received, request, got, head + size, echo)) {
            status = PYVFIO_OTHER;
            break;
        }
        if (got == head + size) {
            stream->answered = 1;
            return PYVFIO_DONE;
        }
        now = pyvfio_now();
        if (!end)
            end = now + PYVFIO_REST_NS;
        if (now >= end) {
            status = PYVFIO_LATE;
            break;
        }
    }
    stream->unread = (uint32_t)(got < in_one ? got : in_one);
    stream->unread_data = got - stream->unread;
    return status;
}

/*
 * End a call.  What it has claimed it gives up where all is done; otherwise who goes on from there
 * does.
 */
static int pyvfio_end(struct pyvfio_stream *stream, int status, uint32_t waited)
{
    stream->status = status;
    if (status != PYVFIO_DONE)
        return status;
    return pyvfio_give_up(stream, PYVFIO_C_SENDS | PYVFIO_C_READS) & waited ? PYVFIO_CROWDED
                                                                            : PYVFIO_DONE;
}

static int pyvfio_end_exchange(struct pyvfio_stream *stream, int status)
{
    return pyvfio_end(stream, status, PYVFIO_READS_BLOCKED);
}

static int pyvfio_end_post(struct pyvfio_stream *stream, int status)
{
    return pyvfio_end(stream, status, PYVFIO_SENDS_BLOCKED);
}

/* REGION_READ and REGION_WRITE; a register has no more bytes than `value` */
struct pyvfio_access {
    struct pyvfio_header header;
    struct pyvfio_range range;
    uint64_t value;
};

/* Begin a call of one access, with what it has claimed. */
static struct pyvfio_access pyvfio_access(struct pyvfio_stream *stream, uint16_t command,
                                          uint32_t flags, uint32_t region, uint64_t offset,
                                          uint32_t count)
{
    size_t size = offsetof(struct pyvfio_access, value);
    int posts = flags & PYVFIO_NO_REPLY;

    pyvfio_begin(stream, posts ? PYVFIO_C_SENDS : PYVFIO_C_SENDS | PYVFIO_C_READS);
    return (struct pyvfio_access){
        .header = {
            .id = pyvfio_take_id(stream),
            .command = command,
            .size = (uint32_t)size + (command == PYVFIO_REGION_WRITE ? count : 0),
            .flags = flags,
        },
        .range = {offset, region, count},
    };
}

/* Send an access and take its answer, with `size` bytes of data. */
static int pyvfio_exchange(struct pyvfio_stream *stream, const struct pyvfio_access *access,
                           void *data, size_t size)
{
    int status = pyvfio_send(stream, access, access->header.size, -1);

    stream->begun = stream->sent > 0;
    if (status != PYVFIO_DONE) {
        stream->partial = (uint32_t)stream->sent;
    } else {
        pyvfio_give_up(stream, PYVFIO_C_SENDS);
        status = pyvfio_take_reply(stream, access, sizeof(access->range), data, size);
    }
    return status;
}

/* REGION_READ of a register of at most 8 bytes. */
static int pyvfio_read_register(struct pyvfio_stream *stream, uint32_t region, uint64_t offset,
                                uint32_t width, uint64_t *value)
{
    uint8_t *data = stream->received + PYVFIO_REQUEST_SIZE;
    struct pyvfio_access access;
    uint64_t found = 0;
    int status;

    if (!pyvfio_claim_socket(stream->claims))
        return PYVFIO_BUSY;
    access = pyvfio_access(stream, PYVFIO_REGION_READ, PYVFIO_COMMAND, region, offset, width);
    status = pyvfio_exchange(stream, &access, data, width);
    memcpy(&found, data, width);
    *value = le64toh(found);
    return pyvfio_end_exchange(stream, status);
}

/* REGION_READ into memory of the caller. */
static int pyvfio_read_region(struct pyvfio_stream *stream, uint32_t region, uint64_t offset,
                              uint32_t size, uintptr_t target)
{
    struct pyvfio_access access;

    if (!pyvfio_claim_socket(stream->claims))
        return PYVFIO_BUSY;
    access = pyvfio_access(stream, PYVFIO_REGION_READ, PYVFIO_COMMAND, region, offset, size);
    return pyvfio_end_exchange(stream,
                               pyvfio_exchange(stream, &access, (void *)target, size));
}

/* REGION_WRITE of a register of at most 8 bytes, with its answer. */
static int pyvfio_write_register(struct pyvfio_stream *stream, uint32_t region, uint64_t offset,
                                 uint32_t width, uint64_t value)
{
    struct pyvfio_access access;

    if (!pyvfio_claim_socket(stream->claims))
        return PYVFIO_BUSY;
    access = pyvfio_access(stream, PYVFIO_REGION_WRITE, PYVFIO_COMMAND, region, offset, width);
    access.value = htole64(value);
    return pyvfio_end_exchange(stream, pyvfio_exchange(stream, &access, NULL, 0));
}

/*
 * Send, and where the socket is full wait a little until the peer has read a part of it: that costs
 * less than to queue.  Something of the peer's to be read ends the wait; it may want an answer first.
 */
static int pyvfio_send_patiently(struct pyvfio_stream *stream, const uint8_t *data, size_t size)
{
    struct pollfd wait = {.fd = stream->fd, .events = POLLIN | POLLOUT};
    uint64_t end = 0;
    int status;

    for (;;) {
        uint64_t now;

        status = pyvfio_send(stream, data + stream->sent, size - stream->sent, -1);
        if (status == PYVFIO_DONE || stream->error)
            break;
        now = pyvfio_now();
        if (!end)
            end = now + PYVFIO_PATIENCE_NS;
        if (now >= end || poll(&wait, 1, PYVFIO_PATIENCE_NS / 1000000) != 1 ||
            wait.revents != POLLOUT)
            break;
    }
    return pyvfio_end_post(stream, status);
}

/* Messages that are not answered. */
static int pyvfio_post(struct pyvfio_stream *stream, uintptr_t messages, size_t size)
{
    if (!pyvfio_claim_sending(stream->claims))
        return PYVFIO_BUSY;
    pyvfio_begin(stream, PYVFIO_C_SENDS);
    pyvfio_count_post(stream->claims);
    return pyvfio_send_patiently(stream, (const uint8_t *)messages, size);
}

/*
 * REGION_WRITE of a register of at most 8 bytes that is not answered; unless `over` says, when
 * nobody else can send any more, that nothing is to be sent like that.
 */
static int pyvfio_post_register(struct pyvfio_stream *stream, uint32_t region, uint64_t offset,
                                uint32_t width, uint64_t value, const int *over)
{
    struct pyvfio_access access;

    if (!pyvfio_claim_sending(stream->claims))
        return PYVFIO_BUSY;
    access = pyvfio_access(stream, PYVFIO_REGION_WRITE, PYVFIO_NO_REPLY, region, offset, width);
    /* Before the look: who ends posting looks at this next, and waits for what is under way. */
    pyvfio_count_post(stream->claims);
    if (__atomic_load_n(over, __ATOMIC_SEQ_CST))
        return pyvfio_end_post(stream, PYVFIO_UNSENT);
    access.value = htole64(value);
    return pyvfio_send_patiently(stream, (const uint8_t *)&access, access.header.size);
}

/* A request of several; they lie one behind the other. */
struct pyvfio_item {
    uint32_t size;
    uint32_t echo; /* bytes of its payload that its reply consists of */
    int32_t fd;    /* that goes with it, or -1 */
};

struct pyvfio_flight {
    const struct pyvfio_item *items;
    size_t count;
    uint8_t *next;         /* to be sent */
    const uint8_t *oldest; /* unanswered */
    size_t owed;           /* bytes of the replies that are to come */
};

static size_t pyvfio_reply_size(const struct pyvfio_item *item)
{
    return sizeof(struct pyvfio_header) + item->echo;
}

/* Requests that go with one sendmsg(2), and several of those that go with one sendmmsg(2). */
#define PYVFIO_TOGETHER 64

/*
 * Send requests, at most `most`: those without descriptors in one piece, and each that has one in a
 * piece of its own, since a descriptor goes with the first byte of a piece.  The kernel sends no
 * further piece behind one that was not sent as a whole.
 */
static int pyvfio_send_pieces(struct pyvfio_stream *stream, const struct pyvfio_item *item,
                              uint8_t *start, size_t most)
{
    struct mmsghdr pieces[PYVFIO_TOGETHER] = {0};
    struct iovec parts[PYVFIO_TOGETHER];
    union pyvfio_control controls[PYVFIO_TOGETHER] = {0};
    size_t count = 0, whole = 0, at;
    int sent;

    for (at = 0; at < most; at++, start += item[at - 1].size) {
        uint16_t id = pyvfio_take_id(stream);

        memcpy(start, &id, sizeof(id));
        if (at && item[at].fd < 0 && item[at - 1].fd < 0) {
            parts[count - 1].iov_len += item[at].size;
            continue;
        }
        parts[count] = (struct iovec){start, item[at].size};
        pieces[count].msg_hdr.msg_iov = &parts[count];
        pieces[count].msg_hdr.msg_iovlen = 1;
        if (item[at].fd >= 0)
            pyvfio_attach(&pieces[count].msg_hdr, &controls[count], item[at].fd);
        count++;
    }
    if (count == 1)
        return pyvfio_send(stream, parts[0].iov_base, parts[0].iov_len, item[0].fd);
    sent = sendmmsg(stream->fd, pieces, (unsigned int)count, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
        stream->error = pyvfio_would_wait(errno) ? 0 : errno;
        return PYVFIO_UNSENT;
    }
    for (at = 0; at < (size_t)sent; at++) {
        stream->sent += pieces[at].msg_len;
        whole += pieces[at].msg_len == parts[at].iov_len;
    }
    return whole == count ? PYVFIO_DONE : PYVFIO_UNSENT;
}

/* Send some requests, and take note of how far that came. */
static int pyvfio_send_some(struct pyvfio_stream *stream, struct pyvfio_flight *flight, size_t most)
{
    const struct pyvfio_item *item = flight->items + stream->begun;
    uint64_t before = stream->sent, taken;
    size_t count = most < PYVFIO_TOGETHER ? most : PYVFIO_TOGETHER;
    int status = pyvfio_send_pieces(stream, item, flight->next, count);

    for (taken = stream->sent - before; taken && count; count--, item++) {
        flight->owed += pyvfio_reply_size(item);
        stream->begun++;
        flight->next += item->size;
        if (taken < item->size) {
            stream->partial = (uint32_t)taken;
            break;
        }
        taken -= item->size;
    }
    return status;
}

/*
 * Let some replies come before they are taken: the kernel makes some 50 microseconds of it.  A peer
 * that sends each by itself wakes this thread with each, and that may cost more than to carry out
 * the request.
 */
static void pyvfio_nap(void)
{
    struct timespec moment = {0, 1};

    nanosleep(&moment, NULL);
}

/* Receive some replies; `got` bytes of one are left over from before. */
static int pyvfio_take_some(struct pyvfio_stream *stream, struct pyvfio_flight *flight, size_t *got)
{
    size_t room = PYVFIO_RECEIVED - *got, wanted = flight->owed - *got, at = 0;
    struct iovec part = {stream->received + *got, wanted < room ? wanted : room};
    ssize_t more = pyvfio_receive(stream, &part, 1, 0);
    int usual = 1;

    if (more < 0)
        return (int)-more;
    *got += (size_t)more;
    if (stream->rights.count || stream->rights.lost)
        return PYVFIO_OTHER;
    while (at < *got) {
        const struct pyvfio_item *item = flight->items + stream->answered;
        size_t size = pyvfio_reply_size(item);

        usual = pyvfio_answers(stream->received + at, flight->oldest, *got - at, size, item->echo);
        if (!usual || *got - at < size)
            break;
        stream->answered++;
        flight->oldest += item->size;
        flight->owed -= size;
        at += size;
    }
    *got -= at;
    memmove(stream->received, stream->received + at, *got);
    return usual ? PYVFIO_DONE : PYVFIO_OTHER;
}

/*
 * Send `count` requests, at most `window` of them unanswered, and take their replies: a header and
 * what a request has for an echo.  Their ids are filled in.
 *
 * When `nanoseconds` are over no more are sent, so that others may: PYVFIO_PAUSE, with `begun` less
 * than `count`.  When they are over twice, no more are waited for.
 */
static int pyvfio_pipeline(struct pyvfio_stream *stream, uintptr_t requests, uintptr_t items,
                           size_t count, size_t window, uint64_t nanoseconds)
{
    struct pyvfio_flight flight = {
        .items = (const struct pyvfio_item *)items,
        .count = count,
        .next = (uint8_t *)requests,
        .oldest = (const uint8_t *)requests,
    };
    uint64_t start = pyvfio_now();
    size_t got = 0;
    int status = PYVFIO_DONE, filling = 1, sending = 1, alone = 0, pays = 1;

    if (!pyvfio_claim_socket(stream->claims))
        return PYVFIO_BUSY;
    pyvfio_begin(stream, PYVFIO_C_SENDS | PYVFIO_C_READS);
    while (status == PYVFIO_DONE && stream->answered < count) {
        size_t waiting = stream->begun - stream->answered, room = window - waiting;
        uint64_t spent = pyvfio_now() - start;
        int more = stream->begun < count && spent < nanoseconds;

        if (sending && !more)
            pyvfio_give_up(stream, PYVFIO_C_SENDS);
        sending = more;
        /* Half a window at a time: a call for each would cost as much as to wait for each. */
        if (!room)
            filling = 0;
        else if (waiting <= window / 2)
            filling = 1;
        if (more && filling)
            status = pyvfio_send_some(stream, &flight,
                                      count - stream->begun < room ? count - stream->begun : room);
        else if (!waiting)
            break;
        else if (spent >= 2 * nanoseconds)
            status = PYVFIO_LATE;
        else {
            uint64_t answered = stream->answered;
            int naps = alone && pays && waiting > window / 4;

            if (naps)
                pyvfio_nap();
            status = pyvfio_take_some(stream, &flight, &got);
            alone = stream->answered - answered <= 1;
            pays = pays && !(naps && alone);
        }
    }
    stream->unread = (uint32_t)got;
    if (status == PYVFIO_DONE && stream->answered < count)
        status = PYVFIO_PAUSE;
    return pyvfio_end_exchange(stream, status);
}
