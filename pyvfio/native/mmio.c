// SPDX-License-Identifier: BSD-3-Clause
/*
 * Access to mapped device memory: each function touches memory exactly once, with the width in its
 * name, after all stores and before all loads that follow it in the program, as Linux' readl() and
 * writel() have it.  An access whose page cannot be had (SIGBUS: the device decodes no memory, it is gone, or
 * the peer truncated the file behind the mapping) is given up instead of ending the process.
 *
 * A read that faults returns all ones, as a failed PCI read does, and leaves a mark that
 * pyvfio_faulted() takes; so the usual read pays nothing for it.  A write or copy returns -1.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

static __thread sigjmp_buf guard;
static __thread volatile sig_atomic_t guarded;
static __thread volatile sig_atomic_t faulted;
static __thread volatile sig_atomic_t passed_on;
static struct sigaction previous;

/* Whether it is about an access, and was not sent by somebody: kill(2), raise(3). */
static int is_fault(const siginfo_t *info)
{
    return info->si_code > 0;
}

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    if (guarded && is_fault(info)) {
        guarded = 0;
        siglongjmp(guard, 1);
    }
    if (!passed_on && (previous.sa_flags & SA_SIGINFO)) {
        passed_on = 1;
        previous.sa_sigaction(number, info, context);
        passed_on = 0;
    } else if (!passed_on && previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        passed_on = 1;
        previous.sa_handler(number);
        passed_on = 0;
    } else if (is_fault(info) || previous.sa_handler != SIG_IGN) {
        /* Not ours and nobody's: the access is repeated and ends the process as usual. */
        signal(number, SIG_DFL);
        if (!is_fault(info))
            raise(number);
    }
}

/* Called once, at import.  SA_NODEFER, since siglongjmp leaves the handler without a return. */
static int pyvfio_guard(void)
{
    struct sigaction action;

    /* Called at each map: another handler (faulthandler's) may have been put before ours. */
    if (sigaction(SIGBUS, NULL, &action))
        return -errno;
    if ((action.sa_flags & SA_SIGINFO) && action.sa_sigaction == on_sigbus)
        return 0;
    previous = action; /* before it is needed, and the same for two threads at once */
    memset(&action, 0, sizeof(action));
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, NULL) ? -errno : 0;
}

/* False when the access is set up; control comes back here with true after a fault. */
#define ACCESS_FAULTS() (sigsetjmp(guard, 0) != 0)
#define GUARD_ON() do { guarded = 1; __asm__ volatile("" ::: "memory"); } while (0)
#define GUARD_OFF() do { __asm__ volatile("" ::: "memory"); guarded = 0; } while (0)

/*
 * Order.  AFTER_LOAD keeps what follows behind a load of a device, BEFORE_STORE what precedes
 * before a store to one.  x86 keeps both by itself, and uncached accesses among each other, but
 * neither a load behind a store to other memory, nor the order of write-combining memory (which a
 * prefetchable BAR may be).  ARM keeps only accesses of one device in order.
 */
#if defined(__x86_64__) || defined(__i386__)
#define FENCE(instruction) __asm__ volatile(instruction ::: "memory")
#define AFTER_LOAD() FENCE("")
#define BEFORE_STORE() FENCE("")
#define READ_BARRIER() FENCE("lfence")
#define WRITE_BARRIER() FENCE("sfence")
#define FULL_BARRIER() FENCE("mfence")
#elif defined(__aarch64__)
#define FENCE(instruction) __asm__ volatile(instruction ::: "memory")
#define AFTER_LOAD() FENCE("dmb oshld")
#define BEFORE_STORE() FENCE("dmb oshst")
#define READ_BARRIER() FENCE("dsb ld")
#define WRITE_BARRIER() FENCE("dsb st")
#define FULL_BARRIER() FENCE("dsb sy")
#else
#define AFTER_LOAD() __sync_synchronize()
#define BEFORE_STORE() __sync_synchronize()
#define READ_BARRIER() __sync_synchronize()
#define WRITE_BARRIER() __sync_synchronize()
#define FULL_BARRIER() __sync_synchronize()
#endif

static void pyvfio_read_barrier(void)
{
    READ_BARRIER();
}

static void pyvfio_write_barrier(void)
{
    WRITE_BARRIER();
}

static void pyvfio_full_barrier(void)
{
    FULL_BARRIER();
}

#define ACCESSORS(bits)                                                                   \
    /* Returns 0, or -1 after a fault. */                                                 \
    static int guarded_load##bits(uintptr_t address, uint64_t *value)                     \
    {                                                                                     \
        if (ACCESS_FAULTS())                                                              \
            return -1;                                                                    \
        GUARD_ON();                                                                       \
        *value = *(volatile uint##bits##_t *)address;                                     \
        GUARD_OFF();                                                                      \
        AFTER_LOAD();                                                                     \
        return 0;                                                                         \
    }                                                                                     \
                                                                                          \
    static uint##bits##_t pyvfio_read##bits(uintptr_t address)                            \
    {                                                                                     \
        uint64_t value = ~UINT64_C(0);                                                    \
                                                                                          \
        if (guarded_load##bits(address, &value))                                          \
            faulted = 1;                                                                  \
        return (uint##bits##_t)value;                                                     \
    }                                                                                     \
                                                                                          \
    static int pyvfio_write##bits(uintptr_t address, uint##bits##_t value)                \
    {                                                                                     \
        if (ACCESS_FAULTS())                                                              \
            return -1;                                                                    \
        BEFORE_STORE();                                                                   \
        GUARD_ON();                                                                       \
        *(volatile uint##bits##_t *)address = value;                                      \
        GUARD_OFF();                                                                      \
        return 0;                                                                         \
    }

ACCESSORS(8)
ACCESSORS(16)
ACCESSORS(32)
ACCESSORS(64)

/* Whether the last read of this thread that returned all ones had faulted; asked once. */
static int pyvfio_faulted(void)
{
    int answer = faulted;

    faulted = 0;
    return answer;
}

/* For memory only: nobody knows which widths memcpy() takes. */
static int pyvfio_copy(uintptr_t to, uintptr_t from, size_t size)
{
    if (ACCESS_FAULTS())
        return -1;
    GUARD_ON();
    memcpy((void *)to, (const void *)from, size);
    GUARD_OFF();
    return 0;
}

/* The same with one end in a buffer, which needs no address to be told. */
static int pyvfio_copy_out(void *to, uintptr_t from, size_t size)
{
    return pyvfio_copy((uintptr_t)to, from, size);
}

static int pyvfio_copy_in(uintptr_t to, const void *from, size_t size)
{
    return pyvfio_copy(to, (uintptr_t)from, size);
}

static void *pyvfio_map(int fd, uint64_t offset, size_t size, int readable, int writable)
{
    int protection = (readable ? PROT_READ : 0) | (writable ? PROT_WRITE : 0);
    void *address;

    pyvfio_guard();
    address = mmap(NULL, size, protection, MAP_SHARED, fd, (off_t)offset);

    return address == MAP_FAILED ? NULL : address;
}

static int pyvfio_unmap(void *address, size_t size)
{
    return munmap(address, size) ? -errno : 0;
}
