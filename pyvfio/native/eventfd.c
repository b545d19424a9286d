// SPDX-License-Identifier: BSD-3-Clause
/* Signal and take an eventfd that somebody else has as well, without ever blocking against our will.
 *
 * write(2) blocks where the counter is full, unless O_NONBLOCK is set; but the other owner shares
 * the flag, and can fill the counter between a poll and the write.  The kernel itself signals
 * eventfds without waiting: so an asynchronous request that is complete at once is made, and the
 * eventfd named as what tells of it (aio_abi.h, IOCB_FLAG_RESFD).  The request asks whether the
 * eventfd can be read or written, one of which is always so.
 */
#include <errno.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PYVFIO_AIO_EVENTS 64

static pthread_mutex_t pyvfio_aio_lock = PTHREAD_MUTEX_INITIALIZER;
static aio_context_t pyvfio_aio;
static pid_t pyvfio_aio_owner;

static pthread_once_t pyvfio_aio_prepared = PTHREAD_ONCE_INIT;

static void pyvfio_aio_hold(void)
{
    pthread_mutex_lock(&pyvfio_aio_lock);
}

static void pyvfio_aio_release(void)
{
    pthread_mutex_unlock(&pyvfio_aio_lock);
}

/* No fork happens while another thread holds the lock, which the child could never release. */
static void pyvfio_aio_prepare(void)
{
    pthread_atfork(pyvfio_aio_hold, pyvfio_aio_release, pyvfio_aio_release);
}

/* This process's context; a fork does not inherit that of its parent.  Returns 0 or -errno. */
static int pyvfio_aio_context(aio_context_t *context)
{
    int result = 0;

    pthread_once(&pyvfio_aio_prepared, pyvfio_aio_prepare);
    pthread_mutex_lock(&pyvfio_aio_lock);
    if (pyvfio_aio_owner != getpid()) {
        pyvfio_aio = 0;
        if (syscall(SYS_io_setup, PYVFIO_AIO_EVENTS, &pyvfio_aio))
            result = -errno;
        else
            pyvfio_aio_owner = getpid();
    }
    *context = pyvfio_aio;
    pthread_mutex_unlock(&pyvfio_aio_lock);
    return result;
}

/* Add 1 to an eventfd, unless it is full.  Returns 0, or -errno where the kernel cannot do it. */
static int pyvfio_signal(int fd)
{
    struct iocb request = {
        .aio_lio_opcode = IOCB_CMD_POLL,
        .aio_fildes = fd,
        .aio_buf = POLLIN | POLLOUT,
        .aio_flags = IOCB_FLAG_RESFD,
        .aio_resfd = fd,
    };
    struct iocb *requests[] = {&request};
    struct io_event done[PYVFIO_AIO_EVENTS];
    struct timespec now = {0, 0};
    aio_context_t context;
    int result = pyvfio_aio_context(&context);

    if (!result && syscall(SYS_io_submit, context, 1, requests) != 1)
        result = -errno;
    if (!result)
        syscall(SYS_io_getevents, context, 0, PYVFIO_AIO_EVENTS, done, &now);
    return result;
}

#define PYVFIO_NO_COUNT UINT64_MAX /* a count that overflowed is told as one less */

static uint64_t told(uint64_t count)
{
    return count < PYVFIO_NO_COUNT ? count : PYVFIO_NO_COUNT - 1;
}

static uint64_t take_now(int fd)
{
    uint64_t count = 0;
    struct iovec counter = {&count, sizeof(count)};

    if (preadv2(fd, &counter, 1, -1, RWF_NOWAIT) < 0)
        return errno == EAGAIN ? 0 : PYVFIO_NO_COUNT;
    return told(count);
}

#define PYVFIO_MILLISECOND 1000000

/* poll(2) does not tell what is left of the time, as ppoll(2) does: one look at the clock less. */
static int wait_readable(int fd, int64_t nanoseconds)
{
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    struct timespec left = {0, nanoseconds};

    if (nanoseconds < 0)
        return poll(&readable, 1, -1);
    if (nanoseconds < PYVFIO_MILLISECOND)
        return ppoll(&readable, 1, &left, NULL);
    return poll(&readable, 1, (int)(nanoseconds / PYVFIO_MILLISECOND));
}

static uint64_t take_when_readable(int fd, int64_t nanoseconds)
{
    int ready = wait_readable(fd, nanoseconds);

    if (ready < 0)
        return errno == EINTR ? 0 : PYVFIO_NO_COUNT;
    return ready ? take_now(fd) : 0;
}

/*
 * Set an eventfd to 0, and return what it was.  Where it is 0 it is waited for, so many nanoseconds
 * or somewhat less, or (if negative) for ever; 0 is returned where it stays so, and where somebody else was faster or
 * a signal came.  PYVFIO_NO_COUNT is an error, told in errno.
 *
 * Who waits for ever has read(2) wait where its owner lets it: it returns sooner than poll(2).
 */
static uint64_t pyvfio_take(int fd, int64_t nanoseconds)
{
    uint64_t count = 0;

    if (nanoseconds >= 0) {
        count = take_now(fd);
        return count || !nanoseconds ? count : take_when_readable(fd, nanoseconds);
    }
    if (read(fd, &count, sizeof(count)) < 0) {
        if (errno == EAGAIN)
            return take_when_readable(fd, -1);
        return errno == EINTR ? 0 : PYVFIO_NO_COUNT;
    }
    return told(count);
}
